"""Rope with sections for time, height and width, as models that see have it; in text the three are equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.gguf.types import Value, ValueType, array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.export.config import ModelConfig

MROPE = ("default", "mrope", "yarn")
"""Rope types of such families; `mrope` is what files of transformers 4 call the default one."""


def section_metadata(config: ModelConfig, usual: Sequence[int], *, in_turn: bool) -> dict[str, Value]:
    """How many pairs of rope count time, height and width, without the prefix.

    Args:
        config: the configuration.
        usual: the sections where the configuration has none.
        in_turn: pairs belong to the sections in turn, else one section follows the other.

    Raises:
        UnsupportedModelError: sections that leave a pair out, or do not add up to the pairs.
    """
    sections, pairs = config.rope.get("mrope_section") or list(usual), config.rotary_dim // 2
    counts = isinstance(sections, list) and len(sections) == 3 and all(type(n) is int and n >= 0 for n in sections)
    if not counts or not _covered(sections, pairs, in_turn=in_turn):
        raise UnsupportedModelError(
            f"{config.label}: rope_parameters.mrope_section is {sections!r}: llama.cpp needs three counts that cover"
            f" {pairs} pairs, because its graph turns no other"
        )
    return {"rope.dimension_sections": array(ValueType.INT32, [*sections, 0])}


def _covered(sections: Sequence[int], pairs: int, *, in_turn: bool) -> bool:
    if in_turn:
        return all(pair < 3 * sections[pair % 3] for pair in range(pairs))
    return sum(sections) == pairs
