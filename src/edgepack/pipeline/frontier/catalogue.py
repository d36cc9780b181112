"""Which files a frontier has: llama.cpp's types, the same refined, the wire on each host; as data.

A family is a line here; what its options mean is `pipeline.request`'s. Families whose options this edgepack does not
have are left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.pipeline.export_options import declared_options
from edgepack.pipeline.frontier.points import Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PLAIN, IMPORTANCE, REFINED, WIRE = "plain", "importance", "refined", "wire"
LLAMA_CPP = (PLAIN, IMPORTANCE)  # families that llama.cpp's own tool makes
# label → target; from large to small.
TYPES = {
    "F16": "gguf-f16", "Q8_0": "gguf-q8", "Q6_K": "gguf-q6k", "Q5_K_M": "gguf-q5km", "Q4_K_M": "gguf-q4km",
    "IQ4_XS": "gguf-iq4xs", "Q3_K_M": "gguf-q3km", "IQ3_S": "gguf-iq3s", "Q2_K": "gguf-q2k",
}  # fmt: skip
_NO_IMPORTANCE = ("F16", "Q8_0")  # ggml's encoder of Q8_0 rounds to nearest, whatever the weights
_REFINED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
# Hosts of the wire → the types whose shipped bytes it gets: those that a host of this size can be worth.
_WIRE = {
    "q8": ("Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"), "q6k": ("Q5_K_M", "Q4_K_M", "Q3_K_M"),
    "q5k": ("Q5_K_M", "Q4_K_M", "Q3_K_M"), "q4k": ("Q4_K_M", "Q3_K_M", "Q2_K"),
}  # fmt: skip


# Hosts of K-quants → llama.cpp's mixture about them, a little larger than a file of nothing else.
_MIXTURES = {"q5k": "Q5_K_M", "q4k": "Q4_K_M"}


def plain(label: str) -> Spec:
    """llama.cpp's type without importance."""
    return Spec(f"{PLAIN}/{label}", PLAIN, {"target": TYPES[label], "quantizer": "ggml"})


def with_importance(label: str) -> Spec:
    """llama.cpp's type with an importance matrix."""
    return Spec(f"{IMPORTANCE}/{label}", IMPORTANCE, {"target": TYPES[label], "quantizer": "ggml"}, IMPORTANCE)


def stock(label: str) -> Spec:
    """What llama.cpp makes of a type with all that it can use."""
    return plain(label) if label in _NO_IMPORTANCE else with_importance(label)


def refined(label: str) -> Spec:
    """Types allocated and refined within the bytes of the stock file; any type may serve any matrix."""
    return Spec(f"{REFINED}/{label}", REFINED, {"refine": True}, "calibration", ("file_bytes", stock(label).id))


def wire(host: str, label: str) -> Spec:
    """The wire on a host, at the bytes that the stock file ships in; beside its own mixture also in its memory."""
    own = _MIXTURES.get(host) == label
    options = {"target": "wire"} | ({} if own else {"host_type": host})
    at = stock(label).id
    return Spec(
        f"wire-{host}/{label}", f"wire-{host}", options, "calibration", ("shipped_bytes", at), at if own else ""
    )


def stock_types(labels: Iterable[str] = TYPES) -> list[Spec]:
    """llama.cpp's types, each without importance and, where that changes anything, with it."""
    found = [plain(label) for label in labels]
    return found + [with_importance(label) for label in labels if label not in _NO_IMPORTANCE]


def catalogue() -> tuple[Spec, ...]:
    """Every point, those that others take their size of before them."""
    specs = stock_types()
    specs += [refined(label) for label in _REFINED]
    specs += [wire(host, label) for host, labels in _WIRE.items() for label in labels]
    return tuple(spec for spec in specs if is_known(spec))


def is_known(spec: Spec) -> bool:
    """Whether this edgepack's export has every option of it."""
    return spec.options.keys() - {"target"} <= declared_options().keys()


def chosen(specs: Sequence[Spec], patterns: str) -> tuple[Spec, ...]:
    """Those that a comma-separated list of expressions finds (`importance/.*,wire-q8`), with what they stand on.

    Args:
        specs: in order.
        patterns: each is looked for from the beginning of an id; empty takes all.

    Raises:
        UsageError: an expression that is none, or that finds nothing.
    """
    if not patterns:
        return tuple(specs)
    found: set[str] = set()
    for pattern in patterns.split(","):
        try:
            hits = {spec.id for spec in specs if re.match(pattern, spec.id)}
        except re.error as error:
            raise UsageError(f"--points '{pattern}': not an expression: {error}") from None
        if not hits:
            known = ", ".join(dict.fromkeys(spec.family for spec in specs))
            raise UsageError(f"--points '{pattern}': finds none of the points; families are {known}")
        found |= hits
    for spec in reversed(specs):
        if spec.id in found:
            found |= {name for name in (spec.size_of[1] if spec.size_of else "", spec.memory_of) if name}
    return tuple(spec for spec in specs if spec.id in found)
