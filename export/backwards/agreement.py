"""Whether a configuration says what a GGUF's metadata say: the metadata that it would give, held against the file's.

llama.cpp's own defaults count where a file leaves a key out, as those of other converters do.
"""

from __future__ import annotations

from math import isclose
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgepack.export.rules.backwards import Header
    from edgepack.gguf.types import Value

# What llama.cpp takes for a key that is absent (llama-model.cpp, load_hparams).
_DEFAULTS: dict[str, Callable[[Header], Any]] = {
    "attention.head_count_kv": lambda header: header.get("attention.head_count"),
    "attention.key_length": lambda header: header.even_width,
    "attention.value_length": lambda header: header.even_width,
    "attention.causal": lambda _header: True,
    "rope.dimension_count": lambda header: header.get("attention.key_length") or header.even_width,
    "rope.freq_base": lambda _header: 10000.0,
    "rope.scaling.attn_factor": lambda _header: 1.0,
    "vocab_size": lambda header: header.shapes.get("token_embd.weight", (0,))[0],
}
# Keys without effect on what is computed, or of which a configuration says nothing: pooling stands beside it.
_IDLE: dict[str, tuple[Any, ...] | None] = {
    "pooling_type": None,
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.type": ("none",),
    "rope.scaling.original_context_length": None,
    "rope.scaling.factor": (1.0,),
    "expert_gating_func": None,
    "vocab_size": None,
}


def disagreement(header: Header, made: Mapping[str, Value]) -> str | None:
    """The first key of which the two say different things, as a sentence; None where they agree.

    Args:
        header: of the file.
        made: what the family makes of the configuration.
    """
    prefix = f"{header.name}."
    wanted = {key.removeprefix(prefix): value.value for key, value in made.items() if key.startswith(prefix)}
    for key, value in wanted.items():
        found = header.get(key)
        if found is None:
            found = _DEFAULTS[key](header) if key in _DEFAULTS else type(value)()
        if not alike(found, value):
            return f"{prefix}{key} is {found!r} in the file, {value!r} of the configuration that was found for it"
    for key in (full.removeprefix(prefix) for full in header.metadata if full.startswith(prefix)):
        allowed = _IDLE.get(key, ()) if key in _IDLE else ()
        value = header.get(key)
        if key not in wanted and allowed is not None and value not in allowed and value not in (0, False, "", []):
            return f"{prefix}{key} is {value!r}, which no setting of its class says"
    return None


def alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, to single precision; a number stands for a list of it."""
    if isinstance(one, list) or isinstance(other, list):
        size = len(one if isinstance(one, list) else other)
        left, right = (each if isinstance(each, list) else [each] * size for each in (one, other))
        return len(left) == len(right) and all(map(alike, left, right))
    if isinstance(one, bool) or isinstance(other, bool) or isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    return isclose(one, other, rel_tol=1e-6)
