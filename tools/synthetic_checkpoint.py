"""Random checkpoints of any size: written as safetensors in bf16, or as a source that makes its tensors on demand.

    python tools/synthetic_checkpoint.py 1b OUT       a Llama of about 1 B parameters, as a Hugging Face folder

The weights mean nothing (a repeated stretch of normal numbers), names and shapes are real. What the tokenizer
says is taken from the bundled model, whose vocabulary is padded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from edgepack.model import Checkpoint, TensorSpec
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

BUNDLED_TOKENIZER = Path(__file__).resolve().parent.parent / "tests/data/books-llama-6m"
_POOL_WEIGHTS = (1 << 22) - 3  # odd, so that neighbouring rows differ; 8 MiB of bf16
_DEVIATION = 0.02  # the usual initializer_range
_UNITS = {"m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class LlamaShape:
    """What decides a Llama's size; the head is tied to the embedding."""

    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000

    @classmethod
    def of_size(cls, parameters: int, vocabulary: int = 32000) -> LlamaShape:
        """The shape nearest to `parameters` in all with about one layer for each 128 of width.

        Widths are multiples of 256, so that every K-quant's blocks fit without fall-backs.
        """
        shapes = [cls._of_width(hidden, parameters, vocabulary) for hidden in range(256, 16384 + 1, 256)]
        return min(shapes, key=lambda shape: abs(shape.layers - shape.hidden / 128))

    @classmethod
    def _of_width(cls, hidden: int, parameters: int, vocabulary: int) -> LlamaShape:
        feed_forward = round(hidden * 8 / 3 / 256) * 256
        heads = hidden // 64
        kv_heads = heads // 4
        a_layer = 2 * hidden * hidden + 2 * hidden * kv_heads * 64 + 3 * hidden * feed_forward
        layers = max(1, round((parameters - vocabulary * hidden) / a_layer))
        return cls(hidden, layers, feed_forward, heads, kv_heads, vocabulary)

    def config(self) -> dict[str, Any]:
        """`config.json` as transformers writes it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocabulary,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }

    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor of the checkpoint, bf16."""
        d, kv, ff = self.hidden, self.kv_heads * self.hidden // self.heads, self.feed_forward
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, d)}
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            shapes |= {f"{layer}self_attn.{name}_proj.weight": (d, d) for name in "qo"}
            shapes |= {f"{layer}self_attn.{name}_proj.weight": (kv, d) for name in "kv"}
            shapes |= {f"{layer}mlp.{name}_proj.weight": (ff, d) for name in ("gate", "up")}
            shapes[f"{layer}mlp.down_proj.weight"] = (d, ff)
            shapes |= {f"{layer}{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
        return bf16_specs(shapes | {"model.norm.weight": (d,)})


def bf16_specs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    """Specs of bf16 tensors from name → shape."""
    return {name: TensorSpec(name, shape, "bf16") for name, shape in shapes.items()}


@dataclass(frozen=True)
class SyntheticTensors:
    """A `TensorSource` whose tensors are made on demand and take no memory; thread-safe.

    The weights of a tensor depend on its name alone, not on how it is read.

    Attributes:
        specs: every tensor; their types are only declared, rows are always bf16 values.
    """

    specs: Mapping[str, TensorSpec]

    @cached_property
    def _pool(self) -> NDArray[np.uint16]:
        """Normal numbers in bf16, twice in a row, so that any stretch can be cut out of it."""
        weights = np.random.default_rng(0).standard_normal(_POOL_WEIGHTS, np.float32) * np.float32(_DEVIATION)
        halves = (weights.view(np.uint32) >> 16).astype(np.uint16)
        return np.concatenate([halves, halves])

    def stretches(self, name: str, start: int, stop: int) -> Iterator[NDArray[np.uint16]]:
        """Weights `start` (included) to `stop` (not included) of tensor `name` as bf16 bits, in pieces."""
        origin = crc32(name.encode())
        while start < stop:
            at = (origin + start) % _POOL_WEIGHTS
            count = min(stop - start, _POOL_WEIGHTS)
            yield self._pool[at : at + count]
            start += count

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes `start` (included) to `stop` (not included, both even) of tensor `name`, little-endian bf16."""
        return np.concatenate(list(self.stretches(name, start // 2, stop // 2))).view(np.uint8)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        columns = self.specs[name].columns
        out = np.empty((stop - start) * columns, np.uint32)
        at = 0
        for stretch in self.stretches(name, start * columns, stop * columns):
            np.left_shift(stretch, 16, out=out[at : at + len(stretch)], dtype=np.uint32)
            at += len(stretch)
        return out.view(np.float32).reshape(stop - start, columns)


def synthetic_llama(shape: LlamaShape) -> Checkpoint:
    """A Llama that takes no disk and no memory, with the bundled tokenizer."""
    return Checkpoint(BUNDLED_TOKENIZER, shape.config(), SyntheticTensors(shape.specs()))


def write_safetensors(path: Path, tensors: SyntheticTensors) -> None:
    """Write a source as one bf16 safetensors file, about as fast as the disk takes it."""
    header, end = {}, 0
    for name, spec in tensors.specs.items():
        begin, end = end, end + 2 * prod(spec.shape)
        header[name] = {"dtype": "BF16", "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, spec in tensors.specs.items():
            for stretch in tensors.stretches(name, 0, prod(spec.shape)):
                stream.write(stretch.data)


def write_llama(folder: Path, shape: LlamaShape) -> Path:
    """Write a Llama as a Hugging Face folder with the bundled tokenizer; gives the folder back."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(BUNDLED_TOKENIZER / name, folder / name)
    write_safetensors(folder / "model.safetensors", SyntheticTensors(shape.specs()))
    return folder


def parse_parameters(text: str) -> int:
    """`1b`, `350m` or a plain number as a count of parameters."""
    unit = _UNITS.get(text[-1:].lower())
    return round(float(text[:-1]) * unit) if unit else int(text)


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parameters", type=parse_parameters, help="such as 1b or 350m")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    shape = LlamaShape.of_size(arguments.parameters)
    write_llama(arguments.folder, shape)
    count = sum(prod(spec.shape) for spec in shape.specs().values())
    size = (arguments.folder / "model.safetensors").stat().st_size
    print(f"{arguments.folder}: {count / 1e6:.1f} M parameters, {format_size(size)}: {shape}")


if __name__ == "__main__":
    main()
