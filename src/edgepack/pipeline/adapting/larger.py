"""The larger type that an adapter competes with: what the same bytes give when they are spent on types instead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import EdgepackError
from edgepack.pipeline.export import run_export
from edgepack.pipeline.request import ExportRequest
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.pipeline.adapting.measuring import Measured

_LADDER = (
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "F16",
)  # fmt: skip


@dataclass(frozen=True)
class Larger:
    """A file of a larger type.

    Attributes:
        target: its name.
        bytes: its length.
        fits: whether it is no larger than model and adapter together.
    """

    target: str
    bytes: int
    fits: bool


def larger_type(reference: Path, own: int, total: int) -> tuple[Larger | None, str]:
    """The largest type whose file has at most `total` bytes, or else the next one above `own`.

    Args:
        reference: what files are made of.
        own: bytes of the file that the adapter is for.
        total: its bytes and the adapter's.

    Returns:
        (the type, or None where there is none above; why there is none).
    """
    found: list[Larger] = []
    for label in _LADDER:
        target = f"gguf-{label.lower()}"
        try:
            size = run_export(ExportRequest(reference, target, dry_run=True)).bytes
        except EdgepackError as error:
            return None, f"no larger type can be made of '{reference.name}': {error}"
        if size > own:
            found.append(Larger(target, size, size <= total))
    if not found:
        return None, "there is no larger type than the file's"
    within = [each for each in found if each.fits]
    return (max(within, key=lambda each: each.bytes) if within else min(found, key=lambda each: each.bytes)), ""


def make_larger(reference: Path, larger: Larger, imatrix: Path | None, output: Path) -> Path:
    """Export it; raises as `run_export`."""
    request = ExportRequest(reference, larger.target, output=output, imatrix=imatrix, force=True)
    return run_export(request).output


@dataclass(frozen=True)
class Verdict:
    """Model and adapter against the same bytes of a larger type.

    Attributes:
        wins: whether the adapter gives less divergence.
        target: the larger type.
        equal_kl: the divergence that its bytes give: measured where it fits, else on the line between the file and it,
            of the logarithm of divergence over bytes.
        line: the sentence for people.
    """

    wins: bool
    target: str
    equal_kl: float
    line: str


def verdict(before: Measured, after: Measured, larger: Measured, about: Larger) -> Verdict:
    """Judge at equal bytes."""
    if about.fits:
        equal, how = larger.kl, "measured"
    else:
        share = (after.bytes - before.bytes) / (about.bytes - before.bytes)
        low, high = (math.log(max(each, 1e-12)) for each in (before.kl, larger.kl))
        equal, how = math.exp(low + share * (high - low)), "between the two files"
    wins = after.kl < equal
    line = (
        f"at {format_size(after.bytes)} the adapter {'wins over' if wins else 'loses to'} the larger type"
        f" {about.target} ({format_size(about.bytes)}): KL {after.kl:.5f} against {equal:.5f} ({how})"
    )
    return Verdict(wins, about.target, equal, line)
