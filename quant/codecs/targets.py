"""The variant's targets: `edge-seedlm4`, chains such as `seedlm4+vptq2`, and options in the name.

Which matrix gets which target is left to `edgepack.export.coded.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from edgepack.errors import CodecError, UsageError
from edgepack.quant.codecs.registry import codec_class

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.quant.codecs.codec import Codec

PREFIX = "edge-"
# name → (codec, its options)
TARGETS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "seedlm4": ("seedlm", {"block": 8, "coefficients": 3}),
    "seedlm3": ("seedlm", {"block": 12, "coefficients": 4}),
    "vptq2": ("vptq", {"bits": 2}),
    "vptq3": ("vptq", {"bits": 3}),
    "vptq4": ("vptq", {"bits": 4}),
    "nf4": ("nf4", {}),
    "ternary": ("ternary", {}),
    "trajectory": ("trajectory", {}),
    "bezier": ("bezier", {}),
    "bezier4": ("bezier", {"index_bits": 4}),
}


@dataclass(frozen=True)
class EdgeTarget:
    """A codec, or several whose results are added up.

    Attributes:
        name: as it was asked for, without the prefix.
        codecs: at least one.
    """

    name: str
    codecs: tuple[Codec, ...]


def find_edge_target(text: str) -> EdgeTarget:
    """The target called `edge-seedlm4`, `seedlm4:search=pruned` or `edge-seedlm3+vptq2`.

    Raises:
        UsageError: unknown name or option; the text names the nearest one.
    """
    name = text.removeprefix(PREFIX)
    return EdgeTarget(name, tuple(_one(part) for part in name.split("+")))


def _one(text: str) -> Codec:
    name, _, options = text.partition(":")
    if name not in TARGETS:
        near = get_close_matches(name, TARGETS, n=1, cutoff=0.0)[0]
        known = " ".join(PREFIX + known for known in TARGETS)
        raise UsageError(f"unknown codec '{name}': did you mean '{near}'? Known: {known}")
    codec, defaults = TARGETS[name]
    made: Any = codec_class(codec)
    chosen = made(**defaults)
    try:
        return replace(chosen, **_options(chosen, options)) if options else chosen  # type: ignore[no-any-return]
    except CodecError as error:
        raise UsageError(f"codec '{text}': {error}") from error


def _options(codec: Any, text: str) -> dict[str, Any]:
    """`key=value,key=value` in the types that the codec's fields have now."""
    types = {field.name: type(getattr(codec, field.name)) for field in fields(codec)}
    options: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in types:
            raise UsageError(f"codec '{codec.name}': unknown option '{part}', known are {', '.join(types) or 'none'}")
        options[key] = _converted(codec.name, key, value, types[key])
    return options


def _converted(codec: str, key: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value not in ("true", "false"):
            raise UsageError(f"codec '{codec}': option '{key}': expected true or false, got '{value}'")
        return value == "true"
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"codec '{codec}': option '{key}': expected {kind.__name__}, got '{value}'") from None
