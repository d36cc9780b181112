"""`edgepack export --adapter-mode separate`: the adapter as a GGUF of its own; the work is `export.lora.gguf`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.cli.output import note
from edgepack.errors import UsageError
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.mapped_model import MappedModel


def write_separate_adapter(adapter: Path, model: Path, mapped: MappedModel, path: Path, *, dry_run: bool) -> Path:
    """Write the adapter beside the model at `path`; with `dry_run` only check that it can be. Gives its own path.

    Args:
        adapter: a PEFT LoRA's folder.
        model: the Hugging Face folder that it belongs to.
        mapped: the same model under GGUF names.
        path: what the model is written to.
        dry_run: write nothing.

    Raises:
        UsageError: the model is a GGUF.
        AdapterError: not a LoRA, or another model's.
    """
    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.export.lora.adapter import read_adapter
    from edgepack.export.lora.gguf import adapter_factors, write_adapter
    from edgepack.export.lora.merging import adaptable

    if model.is_file():
        raise UsageError(f"--adapter: expected a Hugging Face folder, got '{model}'")
    update = read_adapter(adapter, adaptable(open_checkpoint(model)).tensors)
    beside = path.with_name(f"{path.stem}-lora.gguf")
    if dry_run:
        adapter_factors(update, mapped)
    else:
        size = write_adapter(update, mapped, beside)
        note(f"{beside}: {format_size(size)}, the adapter for {path.name}")
    return beside
