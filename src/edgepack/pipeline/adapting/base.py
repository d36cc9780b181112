"""The file that an adapter is for, as a model that learns: a GGUF read backwards, its weights as the file holds them.

What becomes of the factors is written here too, for llama.cpp, with what it was made for.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.adapter_base import file_digest, vectors_digest
from edgepack.errors import DependencyError, UsageError
from edgepack.export.backwards.checkpoint import opened_source
from edgepack.export.lora.adapter import Adapter, LowRank
from edgepack.export.lora.gguf import adapter_factors
from edgepack.export.lora.low_rank import adapter_metadata, write_low_rank
from edgepack.export.mapped_model import map_checkpoint
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import string
from edgepack.gguf.variant import is_variant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from edgepack.export.mapped import MappedModel
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint
    from edgepack.pipeline.adapting.settings import AdaptSettings


@dataclass(frozen=True)
class Base:
    """A file and the checkpoint that it reads as.

    Attributes:
        path: the GGUF, in one file.
        header: its header.
        checkpoint: its weights as floats under Hugging Face's names; small files lie in a scratch folder.
        mapped: the checkpoint under GGUF names again.
    """

    path: Path
    header: GGUFHeader
    checkpoint: Checkpoint
    mapped: MappedModel

    @property
    def width(self) -> int:
        """Of the states between blocks."""
        value = self.header.get(f"{self.header.get(keys.ARCHITECTURE)}.embedding_length")
        return value if isinstance(value, int) and value > 0 else 1


@contextmanager
def opened_base(path: Path, command: str) -> Iterator[Base]:
    """Open a GGUF to train an adapter for it.

    Raises:
        UsageError: not one file of ggml's own types.
        UnsupportedModelError: it cannot be read backwards; the sentence says why.
        DependencyError: torch, transformers or peft is not installed.
        EdgepackError: it is not sound.
    """
    check_installed(command)
    header = read_header(path)
    if is_variant(header):
        raise UsageError(f"{command}: expected a GGUF of ggml's types, got one of the variant: '{path}'")
    if header.get(keys.SPLIT_COUNT, 1) != 1:
        raise UsageError(f"{command}: expected a GGUF in one file, got one of several: '{path}'")
    with opened_source(path) as checkpoint:
        yield Base(path, header, checkpoint, map_checkpoint(checkpoint))


@contextmanager
def opened_weights(model: Path, command: str) -> Iterator[Checkpoint]:
    """The checkpoint of a GGUF, as `opened_base`, or of a Hugging Face folder."""
    if model.is_file():
        with opened_base(model, command) as base:
            yield base.checkpoint
        return
    with opened_source(model) as checkpoint:
        yield checkpoint


def numbers_that_learn(checkpoint: Checkpoint, settings: AdaptSettings) -> int:
    """How many numbers the adapter has.

    Raises:
        UsageError: a projection that the model lacks; the text lists what it has.
    """
    from edgepack.quant.calibration.empty_model import empty_model
    from edgepack.quant.learning.lora import LoraSettings, lora_parameters

    lora = LoraSettings(settings.rank, settings.scale, settings.modules)
    return lora_parameters(empty_model(checkpoint.config), lora)


def made_in(scratch: Path) -> Path:
    """Where a run keeps what will get a final name; made when needed."""
    folder = scratch / "made"
    folder.mkdir(exist_ok=True)
    return folder


def check_installed(command: str) -> None:
    """Raise DependencyError unless what trains adapters is installed."""
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"{command}: needs {error.name}: pip install edgepack[train]") from error


class Student:
    """The file's model, frozen, with an adapter that learns.

    Args:
        base: the file.
        settings: of the adapter.

    Raises:
        UsageError: a projection that the model lacks, a device that torch lacks.
    """

    def __init__(self, base: Base, settings: AdaptSettings) -> None:
        import torch

        from edgepack.quant.learning.lora import LoraSettings, with_lora
        from edgepack.quant.learning.models import parameter_names, trainable_model

        self.base, self.settings = base, settings
        dtype = torch.bfloat16 if torch.device(settings.device).type == "cuda" else torch.float32
        plain = trainable_model(base.checkpoint, settings.device, dtype)
        self._names = parameter_names(plain, base.checkpoint)
        lora = LoraSettings(settings.rank, settings.scale, settings.modules)
        self.model: nn.Module = with_lora(plain, lora, settings.seed)

    def write(self, output: Path, about: Mapping[str, Any], *, of_file: bool) -> int:
        """Write the adapter in float16, whole or not at all; its length in bytes.

        Args:
            output: where.
            about: how it was trained, for its metadata.
            of_file: whether it belongs to this one file, not to every quantisation of the model.

        Raises:
            AdapterError: factors that cannot be rearranged as the file's tensors are.
            ResourceError: the disk is too small.
        """
        from edgepack.quant.learning.lora import lora_factors

        found = {name: LowRank(down, up) for name, (down, up) in lora_factors(self.model, self._names).items()}
        factors = adapter_factors(Adapter(output, 0.0, found, {}), self.base.mapped)
        path, header = self.base.path, self.base.header
        extra: dict[str, Value] = {
            keys.ADAPTER_BASE: string(vectors_digest(path, header)),
            keys.ADAPTER_ABOUT: string(json.dumps(about, ensure_ascii=False)),
        }
        if of_file:
            extra[keys.ADAPTER_BASE_FILE] = string(file_digest(path, header))
        metadata = adapter_metadata(header.metadata[keys.ARCHITECTURE], output.stem, extra)
        return write_low_rank({name: (pair.b, pair.a) for name, pair in factors.items()}, metadata, output)
