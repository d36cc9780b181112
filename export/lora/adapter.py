"""PEFT's LoRA adapters: read, checked against the model, and merged into its rows as they are read.

Writing one as a GGUF of its own is left to `export.lora.gguf`. Layout: https://github.com/huggingface/peft
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import AdapterError
from edgepack.export.checkpoint import read_json
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.model import OverriddenTensors, TensorSpec, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.formats.packed import RawTensors
    from edgepack.model import TensorSource

    Matrix = NDArray[np.float32]

_WEIGHTS = "adapter_model.safetensors"
_TORCH_WEIGHTS = "adapter_model.bin"
_PREFIX = "base_model.model."
_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>A|B)(\.default)?(\.weight)?$")
_MAGNITUDE = re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(\.default)?(\.weight)?$")


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight [rows, columns]: `down` [rows, rank] · `up` [rank, columns], scale included.

    Attributes:
        down: float32, shape [rows, rank], the scale multiplied in.
        up: float32, shape [rank, columns].
        magnitude: DoRA's row lengths [rows], or None.
    """

    down: Matrix
    up: Matrix
    magnitude: Matrix | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight it belongs to."""
        return self.down.shape[0], self.up.shape[1]


@dataclass(frozen=True)
class Adapter:
    """An adapter under the names of the model's tensors.

    Attributes:
        path: its folder.
        alpha: `lora_alpha`.
        low_rank: tensor name → what is added to it.
        replaced: tensor name → the whole tensor that stands in its place (`modules_to_save`), to which
            `low_rank` is added where both name it.
    """

    path: Path
    alpha: float
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, Matrix]


@dataclass(frozen=True)
class AdaptedTensors:
    """A source with an adapter merged in: a `TensorSource`. Does not modify `base`."""

    base: TensorSource
    adapter: Adapter

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The base's."""
        return self.base.specs

    def read_rows(self, name: str, start: int, stop: int) -> Matrix:
        """As `TensorSource.read_rows`, the update added."""
        rows = OverriddenTensors(self.base, self.adapter.replaced).read_rows(name, start, stop)
        update = self.adapter.low_rank.get(name)
        if update is None:
            return rows
        rows += update.down[start:stop] @ update.up
        if update.magnitude is not None:
            rows *= (update.magnitude[start:stop] / np.linalg.norm(rows, axis=1))[:, None]
        return rows


def read_adapter(folder: Path, model: TensorSource) -> Adapter:
    """Read a PEFT LoRA and find the model's tensors that it changes.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        model: the tensors of the model that it was trained on.

    Raises:
        AdapterError: not a LoRA, of a kind that cannot be merged, or made for another model.
        CheckpointError: a file that is missing, truncated or hostile.
    """
    reader = _Reader(folder, read_json(folder / "adapter_config.json"), _open_weights(folder), model)
    reader.check_kind()
    names = {name.removeprefix(_PREFIX): name for name in reader.tensors.specs}
    pairs = reader.pair_up(names)
    low_rank = dict(reader.read_pair(module, parts) for module, parts in pairs.items())
    used = {name for parts in pairs.values() for name in parts.values()}
    whole = dict(reader.read_whole(short, name) for short, name in names.items() if name not in used)
    # PEFT saves embeddings beside their factors, changed or not
    replaced = {name: array for name, array in whole.items() if not np.array_equal(array, read_tensor(model, name))}
    if not low_rank and not replaced:
        raise AdapterError(f"{folder}: the adapter changes nothing")
    return Adapter(folder, reader.number(reader.config, "lora_alpha"), low_rank, replaced)


def _open_weights(folder: Path) -> RawTensors:
    if (folder / _WEIGHTS).is_file():
        return SafetensorsFile(folder / _WEIGHTS)
    if (folder / _TORCH_WEIGHTS).is_file():
        from edgepack.export.formats.torch_file import TorchFile

        return TorchFile(folder / _TORCH_WEIGHTS)
    raise AdapterError(f"{folder}: expected {_WEIGHTS}, found none")


@dataclass(frozen=True)
class _Reader:
    """One adapter being read: every message names its folder."""

    folder: Path
    config: Mapping[str, Any]
    tensors: RawTensors
    model: TensorSource

    def error(self, what: str) -> AdapterError:
        return AdapterError(f"{self.folder}: {what}")

    def check_kind(self) -> None:
        kind = self.config.get("peft_type")
        if kind != "LORA":
            raise self.error(f"expected peft_type LORA, got {kind!r}")
        for key in ("lora_bias", "alora_invocation_tokens", "target_parameters", "megatron_config"):
            if self.config.get(key):
                raise self.error(f"{key} cannot be merged")

    def pair_up(self, names: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Module → {part → stored name}, where part is A, B, embedding_A, embedding_B or magnitude."""
        pairs: dict[str, dict[str, str]] = {}
        for short, stored in names.items():
            if match := _KEY.match(short):
                pairs.setdefault(match["module"], {})[(match["embedding"] or "") + match["part"]] = stored
            elif match := _MAGNITUDE.match(short):
                pairs.setdefault(match["module"], {})["magnitude"] = stored
        for module, parts in pairs.items():
            if parts.keys() - {"magnitude"} not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
                raise self.error(f"module '{module}': expected lora_A and lora_B, got {sorted(parts)}")
        return pairs

    def find_target(self, name: str) -> TensorSpec:
        """The model's tensor of that name; classes differ in a prefix such as `model.` or `transformer.`."""
        specs = self.model.specs
        if name in specs:
            return specs[name]
        found = [own for own in specs if own.endswith(f".{name}") or name.endswith(f".{own}")]
        if len(found) != 1:
            raise self.error(f"the model has no tensor '{name}': the adapter was made for another model")
        return specs[found[0]]

    def read_pair(self, module: str, parts: Mapping[str, str]) -> tuple[str, LowRank]:
        """The tensor's name and what is added to it."""
        embedding = "embedding_A" in parts
        first, second = (read_tensor(self.tensors, parts[f"embedding_{p}" if embedding else p]) for p in ("A", "B"))
        if first.ndim != 2 or second.ndim != 2 or not first.shape[0] or first.shape[0] != second.shape[1]:
            shapes = f"{list(first.shape)} and {list(second.shape)}"
            raise self.error(f"module '{module}': expected [rank, in] and [out, rank], got {shapes}")
        spec = self.find_target(f"{module}.weight")
        transposed = embedding or self.config.get("fan_in_fan_out") is True
        down, up = (first.T, second.T) if transposed else (second, first)
        self.check_shape(spec, (down.shape[0], up.shape[1]))
        scale = self.scale(module, first.shape[0])
        magnitude = self.magnitude(parts.get("magnitude"), down.shape[0], transposed)
        return spec.name, LowRank(np.ascontiguousarray(down * np.float32(scale)), up, magnitude)

    def read_whole(self, short: str, stored: str) -> tuple[str, Matrix]:
        """A tensor that stands in place of the model's."""
        for wrapper in (".modules_to_save.default", ".modules_to_save", ".base_layer"):
            short = short.replace(wrapper, "")
        spec = self.find_target(short)
        self.check_shape(spec, self.tensors.specs[stored].shape)
        return spec.name, read_tensor(self.tensors, stored)

    def check_shape(self, spec: TensorSpec, got: tuple[int, ...]) -> None:
        if got != spec.shape:
            shapes = f"is {list(spec.shape)}, the adapter's is {list(got)}"
            raise self.error(f"tensor '{spec.name}' {shapes}: it was made for another model")

    def magnitude(self, name: str | None, rows: int, transposed: bool) -> Matrix | None:
        if name is None:
            return None
        lengths = read_tensor(self.tensors, name).reshape(-1)
        if transposed or lengths.shape != (rows,):
            raise self.error(f"'{name}': expected the lengths of {rows} rows, got {list(lengths.shape)}")
        return lengths

    def scale(self, module: str, rank: int) -> float:
        """Alpha over the rank (or its root), where the first matching pattern sets a module's own alpha."""
        patterns = self.config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise self.error(f"expected alpha_pattern to be an object, got {type(patterns).__name__}")
        own = next((pattern for pattern in patterns if self.matches(pattern, module)), None)
        alpha = self.number(self.config, "lora_alpha") if own is None else self.number(patterns, own)
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") is True else rank)

    def matches(self, pattern: str, module: str) -> bool:
        try:
            return re.match(rf"(.*\.)?({pattern})$", module) is not None
        except re.error as error:
            raise self.error(f"alpha_pattern {pattern!r}: not a regular expression: {error}") from None

    def number(self, config: Mapping[str, Any], key: str) -> float:
        value = config.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.error(f"expected {key} to be a number, got {value!r}")
        return float(value)
