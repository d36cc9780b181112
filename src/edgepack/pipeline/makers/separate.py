"""A maker whose files have a LoRA of their own beside them: what `--adapter-mode separate` puts around any maker.

Rearranging the factors is `export.lora.gguf`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.lora.adapter import read_adapter
from edgepack.export.lora.gguf import adapter_factors, write_adapter
from edgepack.export.lora.merging import adaptable

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.mapped import MappedModel
    from edgepack.model import Checkpoint
    from edgepack.pipeline.outline import Made, Outline

Step_contra = TypeVar("Step_contra", contravariant=True)
SUFFIX = "-lora"  # of the adapter's name, after the stem of its model's


class MappedMaker(Protocol[Step_contra]):
    """A maker, as `goals.Maker`, that knows the model under GGUF names."""

    advice: str

    @property
    def mapped(self) -> MappedModel:
        """The model before any work."""
        ...

    def outline(self, setting: Step_contra) -> Outline:
        """As `goals.Maker.outline`."""
        ...

    def make(self, setting: Step_contra, path: Path) -> Made:
        """As `goals.Maker.make`."""
        ...

    def forget(self, setting: Step_contra) -> None:
        """As `goals.Maker.forget`."""
        ...


class SeparateAdapter:
    """A PEFT LoRA for a model.

    Args:
        adapter: its folder.
        model: the Hugging Face folder that it belongs to.
        original: the checkpoint of a GGUF that it belongs to.

    Raises:
        AdapterError: not a LoRA, or another model's.
    """

    def __init__(self, adapter: Path, model: Path, original: Checkpoint | None = None) -> None:
        base = adaptable(original or open_checkpoint(model))
        self._update = read_adapter(adapter, base.tensors, conv1d=base.conv1d)

    def bytes_for(self, mapped: MappedModel) -> int:
        """Of its factors; raises AdapterError where they cannot be rearranged."""
        return sum(pair.a.nbytes + pair.b.nbytes for pair in adapter_factors(self._update, mapped).values())

    def write(self, mapped: MappedModel, gguf: Path) -> Path:
        """Write it beside a model's file; gives its path."""
        path = gguf.with_name(f"{gguf.stem}{SUFFIX}.gguf")
        write_adapter(self._update, mapped, path)
        return path


class WithAdapter(Generic[Step_contra]):
    """Makes what another maker makes, and the adapter beside it.

    Args:
        maker: of the files.
        adapter: what lies beside each.
    """

    def __init__(self, maker: MappedMaker[Step_contra], adapter: SeparateAdapter) -> None:
        self._maker, self._adapter, self.advice = maker, adapter, maker.advice

    def outline(self, setting: Step_contra) -> Outline:
        """As `goals.Maker.outline`; the adapter's bytes are its factors'."""
        outline = self._maker.outline(setting)
        shipped = outline.shipped_bytes + self._adapter.bytes_for(self._maker.mapped)
        return replace(outline, shipped_bytes=shipped, is_exact=False, beside=(*outline.beside, SUFFIX))

    def make(self, setting: Step_contra, path: Path) -> Made:
        """As `goals.Maker.make`."""
        made = self._maker.make(setting, path)
        outline = replace(made.outline, beside=(*made.outline.beside, SUFFIX))
        beside = self._adapter.write(self._maker.mapped, made.gguf)
        return replace(made, outline=outline, adapters=(*made.adapters, beside))

    def forget(self, setting: Step_contra) -> None:
        """As `goals.Maker.forget`."""
        self._maker.forget(setting)
