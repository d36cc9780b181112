"""Opens a source as a `MappedModel`: a Hugging Face checkpoint under GGUF names, or a GGUF as it is.

What a mapped model is stands in `mapped`; `export.plan` takes it from here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.export.backwards.agreement import alike
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.config import ModelConfig
from edgepack.export.facts import model_facts
from edgepack.export.mapped import MappedModel, refuse_integers, size_of
from edgepack.export.naming import general_metadata
from edgepack.export.notes import limits
from edgepack.export.rows import StoredBlocks
from edgepack.export.rules.mapping import completed, find_family, map_tensors, observed
from edgepack.export.rules.pooling import dense_tensors, pooling_metadata, pooling_notes, with_lowercasing
from edgepack.export.tokenizer.vocabulary import open_vocabulary
from edgepack.files.source import WatchedFiles
from edgepack.gguf import keys
from edgepack.gguf.types import string

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.naming import Size
    from edgepack.export.rules.family import Family
    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")


def map_checkpoint(checkpoint: Checkpoint, *, pre: str | None = None, allow_requantize: bool = False) -> MappedModel:
    """A Hugging Face checkpoint under GGUF names; reads headers and the tokenizer, no weights.

    Args:
        checkpoint: the model.
        pre: the pre-tokenizer's name where its structure is not known.
        allow_requantize: whether tensors that are stored in a type of ggml's may be quantised again.

    Raises:
        CheckpointError: missing, unknown or ill-shaped tensors, or a configuration without a needed key.
        UnsupportedModelError: an architecture or setting that cannot be honoured.
        TokenizerError: a vocabulary that is not recognised.
    """
    sources = WatchedFiles.of(_weight_files(checkpoint))
    published = ModelConfig(checkpoint.config, folder=checkpoint.path)
    family = find_family(published)
    config = observed(completed(published, family), family, checkpoint.tensors.specs)
    tensors = map_tensors(family, config, checkpoint.tensors) | dense_tensors(config, family.name)
    refuse_integers(tensors)
    metadata, notes = _metadata(checkpoint, family, config, size_of(tensors, config.n_experts), pre)
    facts = model_facts(metadata, str(checkpoint.path))
    notes = (*checkpoint.notes, *notes, *pooling_notes(config))
    notes += limits(family, config, metadata, checkpoint.tensors)
    stored = (name for name, rows in tensors.items() if isinstance(rows, StoredBlocks) and not allow_requantize)
    return MappedModel(
        str(checkpoint.origin or checkpoint.path), metadata, tensors, facts, sources, notes, frozenset(stored)
    )


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that weights come from."""
    if checkpoint.origin is not None:
        return [checkpoint.origin]
    return sorted(path for path in checkpoint.path.iterdir() if path.suffix in _WEIGHT_SUFFIXES)


def _metadata(
    checkpoint: Checkpoint, family: Family, config: ModelConfig, size: Size, pre: str | None
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Every key, and what the tokenizer's files say differently; a GGUF's keys are taken over where they still hold."""
    own = family.metadata(config) | family.stored(config, checkpoint.tensors)  # a head's own pooling decides
    if checkpoint.metadata is not None and checkpoint.tokenizer is None:
        before = checkpoint.metadata
        changed = {key: v for key, v in own.items() if key not in before or not alike(before[key].value, v.value)}
        return {**before, **changed}, ()
    vocabulary = open_vocabulary(
        checkpoint.tokenizer or checkpoint.path,
        config.values,
        pre=pre,
        model=checkpoint.path,
        templates=checkpoint.template,
    )
    general = {keys.ARCHITECTURE: string(family.name)} | general_metadata(checkpoint.path, family.name, size)
    tokenizer = with_lowercasing(vocabulary.metadata, config)
    return {**general, **pooling_metadata(config, family.name), **own, **tokenizer}, vocabulary.notes


def open_model(
    path: Path, *, pre: str | None = None, adapter: Path | None = None, allow_requantize: bool = False
) -> MappedModel:
    """The model at `path`: a Hugging Face folder or a GGUF.

    Args:
        path: the folder or file.
        pre: the pre-tokenizer's name where its structure is not known.
        adapter: a PEFT LoRA's folder, merged into the weights.
        allow_requantize: whether quantised tensors of a GGUF, or of a checkpoint in a type of ggml's, may be quantised
            again.

    Raises:
        AdapterError: the adapter is not a LoRA or does not belong to the model.
        UsageError: an adapter for a GGUF, or quantised tensors without `allow_requantize`.
        EdgepackError: as `map_checkpoint` and `map_gguf`.
    """
    if path.is_file():
        from edgepack.export.gguf_source import map_gguf

        if pre is not None:
            raise UsageError(f"--pre: a GGUF has its tokenizer, got '{path}'")
        if adapter is not None:
            raise UsageError(f"--adapter: expected a Hugging Face folder to merge into, got '{path}'")
        return map_gguf(path, allow_requantize=allow_requantize)
    model = map_checkpoint(open_merged(path, adapter), pre=pre, allow_requantize=allow_requantize)
    if adapter is None:
        return model
    return replace(model, sources=model.sources + WatchedFiles.of(sorted(adapter.glob("adapter_*"))))


def open_merged(path: Path, adapter: Path | None) -> Checkpoint:
    """The checkpoint in a Hugging Face folder, with a PEFT LoRA (a folder) merged into its weights where one is given.

    Raises:
        AdapterError: the adapter is not a LoRA or does not belong to the model.
        EdgepackError: as `open_checkpoint`.
    """
    return merged(open_checkpoint(path), adapter)


def merged(checkpoint: Checkpoint, adapter: Path | None) -> Checkpoint:
    """A checkpoint with an adapter in its weights where one is given; raises as `open_merged`."""
    if adapter is None:
        return checkpoint
    from edgepack.export.lora.merging import merge_adapter

    return merge_adapter(checkpoint, adapter)
