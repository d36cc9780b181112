"""What the choice of types asks about a model, read off its metadata, whatever they were made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import GGUFError
from edgepack.gguf import keys
from edgepack.quant.types.mixtures import ModelFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.gguf.types import Value


def model_facts(metadata: Mapping[str, Value], label: object) -> ModelFacts:
    """The facts behind `metadata`.

    Args:
        metadata: of a model.
        label: names it in messages.

    Raises:
        GGUFError: a key that is absent or no count.
    """
    name = metadata[keys.ARCHITECTURE].value if keys.ARCHITECTURE in metadata else None
    if not isinstance(name, str):
        raise GGUFError(f"{label}: expected general.architecture, got {name!r}")
    heads = _count(metadata, f"{name}.attention.head_count", label, default=1)
    kv_heads = _count(metadata, f"{name}.attention.head_count_kv", label, default=heads)
    experts = _count(metadata, f"{name}.expert_count", label, default=0)
    return ModelFacts(name, _count(metadata, f"{name}.block_count", label), heads, kv_heads, experts)


def _count(metadata: Mapping[str, Value], key: str, label: object, default: int | None = None) -> int:
    """A count, the first layer's where each layer has its own."""
    found = metadata.get(key)
    value = default if found is None else found.value
    if isinstance(value, list) and value:
        value = value[0]
    if type(value) is not int or value < 0:
        raise GGUFError(f"{label}: expected {key} to be a count, got {value!r}")
    return value
