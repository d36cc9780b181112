"""Whether the head is the embedding: decided as transformers does, by the configuration and by what the files hold.

`PreTrainedModel.tie_weights` (transformers 5, modeling_utils.py): a head that the configuration ties is kept apart
where the checkpoint has one that differs, and the one matrix that a checkpoint has serves as both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.config import ModelConfig
from edgepack.export.rules.mapping import completed, find_family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.export.rules.family import Family
    from edgepack.model import Checkpoint, TensorSource, TensorSpec

_TIE = "tie_word_embeddings"
_EMBEDDING = "token_embd.weight"
_STEP_BYTES = 1 << 24


@dataclass(frozen=True)
class AliasedTensors:
    """A source in which tensors have further names: a `TensorSource`. Does not modify `base`."""

    base: TensorSource
    aliases: Mapping[str, str]

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The base's, and the aliases."""
        own = self.base.specs
        return {**own, **{new: replace(own[old], name=new) for new, old in self.aliases.items()}}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        return self.base.read_rows(self.aliases.get(name, name), start, stop)


def settle_ties(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a configuration and names that agree with its tensors, and a note where they did not.

    Reads embedding and head where both are there and tied by the configuration. A family that is not known is left
    as it is: it is refused later.
    """
    checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *_contradiction(checkpoint.config)))
    names = embedding_and_head(checkpoint)
    if names is None or not is_tied(checkpoint):
        return checkpoint
    embedding, head = names
    has = tuple(name in checkpoint.tensors.specs for name in names)
    if has == (False, True):
        tensors = AliasedTensors(checkpoint.tensors, {embedding: head})
        note = f"ties: '{head}' is '{embedding}' too: config.json ties them and only the first is in the checkpoint"
        return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))
    if has != (True, True) or equal_tensors(checkpoint.tensors, embedding, head):
        return checkpoint
    note = f"ties: '{head}' differs from '{embedding}': kept apart, as transformers does, though config.json ties"
    return replace(checkpoint, config=untied(checkpoint.config), notes=(*checkpoint.notes, note))


def _contradiction(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the whole model and its text part say different things."""
    text, whole = config.get("text_config"), config.get(_TIE)
    own = text.get(_TIE) if isinstance(text, dict) else None
    if whole is None or own is None or own == whole:
        return ()
    return (f"ties: {_TIE} is {whole!r}, as the whole model says, not {own!r} as text_config does",)


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the configuration of a known family makes the head the embedding."""
    family = known_family(checkpoint)
    return family is not None and completed(ModelConfig(checkpoint.config), family).tied


def embedding_and_head(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """The names of both as this checkpoint has them, None for a family that is not known or has no head."""
    family = known_family(checkpoint)
    return None if family is None else _both_names(family, checkpoint.tensors)


def known_family(checkpoint: Checkpoint) -> Family | None:
    """The family of a checkpoint, None where it is not known."""
    try:
        return find_family(ModelConfig(checkpoint.config, folder=checkpoint.path))
    except (CheckpointError, UnsupportedModelError):  # refused later, by what it is
        return None


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with a head of its own, wherever it says so."""
    text = config.get("text_config")
    nested = {"text_config": {**text, _TIE: False}} if isinstance(text, dict) and _TIE in text else {}
    return {**config, **nested, _TIE: False}


def equal_tensors(source: TensorSource, first: str, second: str) -> bool:
    """Whether two tensors of a source hold the same numbers."""
    specs = source.specs
    if specs[first].shape != specs[second].shape:
        return False
    step = max(1, _STEP_BYTES // (4 * max(1, specs[first].columns)))
    return all(
        np.array_equal(source.read_rows(first, start, stop), source.read_rows(second, start, stop))
        for start in range(0, specs[first].rows, step)
        for stop in (min(start + step, specs[first].rows),)
    )


def _both_names(family: Family, source: TensorSource) -> tuple[str, str] | None:
    """The names of embedding and head in this checkpoint, None for a family without a head."""
    rule = next((rule for rule in family.tensors if rule.target == _EMBEDDING), None)
    if rule is None or not isinstance(rule.sources, str) or family.tied_head is None:
        return None
    return _spelling(rule.sources, family, source), _spelling(family.tied_head, family, source)


def _spelling(name: str, family: Family, source: TensorSource) -> str:
    """A rule's name as this checkpoint has it; unchanged where it has none."""
    for ours, theirs in (("", ""), *family.renames):
        if name.startswith(ours) and theirs + name.removeprefix(ours) in source.specs:
            return theirs + name.removeprefix(ours)
    return name
