"""Heads that give a text scores instead of an embedding: rerankers, and what sorts texts into classes.

Which tensors such a head has, and what its graph takes for granted, are the families' data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.rules.family import TensorRule
from edgepack.gguf.types import Value, ValueType, array, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_RANK = 4  # LLAMA_POOLING_TYPE_RANK
_UNNAMED = ["LABEL_0", "LABEL_1"]  # as many as transformers takes where config.json says nothing


def labels(config: ModelConfig) -> list[str]:
    """Names of the scores, in their order.

    Raises:
        CheckpointError: `id2label` is not an object from 0, 1, … to names.
    """
    named = config.get("id2label")
    if named is None:
        return [f"LABEL_{i}" for i in range(config.count("num_labels", default=len(_UNNAMED)))]
    numbers = {str(i) for i in range(len(named))} if isinstance(named, dict) else set()
    if not numbers or set(named) != numbers:
        raise CheckpointError(f"{config.label}: id2label: expected names by number, got {named!r}")
    return [str(named[str(i)]) for i in range(len(named))]


def ranking_metadata(config: ModelConfig, name: str, names: list[str] | None = None) -> dict[str, Value]:
    """That the model gives scores, and what they are called.

    Args:
        config: the configuration.
        name: `general.architecture`.
        names: of the scores; `labels` where None.
    """
    called = labels(config) if names is None else names
    return {
        f"{name}.pooling_type": u32(_RANK),
        f"{name}.classifier.output_labels": array(ValueType.STRING, called),
    }


def ranking_dimensions(config: ModelConfig) -> dict[str, int]:
    """How many scores there are, under the name that `classifier_rules` use."""
    return {"labels": len(labels(config))}


def classifier_rules(dense: str | None, scores: str, *, bias: bool = True) -> tuple[TensorRule, ...]:
    """A matrix to scores, behind one from hidden to hidden where there is one.

    Args:
        dense: the first matrix's name in the checkpoint, without `.weight`.
        scores: the second's.
        bias: both have one.
    """
    kinds = ("weight", *(["bias"] if bias else []))
    shapes = {"weight": "labels d", "bias": "labels"}
    found = [TensorRule(f"cls.output.{kind}", f"{scores}.{kind}", shapes[kind]) for kind in kinds]
    if dense is not None:
        square = {"weight": "d d", "bias": "d"}
        found += [TensorRule(f"cls.{kind}", f"{dense}.{kind}", square[kind]) for kind in kinds]
    return tuple(found)
