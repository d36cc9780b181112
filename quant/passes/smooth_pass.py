"""Declares the pass `smooth`; the work is `quant.passes.smooth`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.quant.passes.registry import FOLDED, ROUNDED, PassDeclaration, always, never, no_check
from edgepack.quant.passes.settings import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.model import Checkpoint
    from edgepack.quant.passes.run import PassOutcome, PassRun
    from edgepack.quant.passes.settings import Settings


def _leaves(_settings: Settings) -> Mapping[str, str]:
    return {FOLDED: "which has already folded its scales"}


def _run(checkpoint: Checkpoint, settings: Settings, run: PassRun) -> PassOutcome:
    from edgepack.quant.passes.smooth.block import SmoothSettings
    from edgepack.quant.passes.smooth.weights import apply_smooth

    return apply_smooth(checkpoint, SmoothSettings(**settings), run)


PASS = PassDeclaration(
    name="smooth",
    summary="scales and an order of channels under which rounding activations to 8 bits costs least, folded exactly",
    settings={
        "steps": Setting("whole", low=0, high=10000, default=40),
        "strength": Setting("number", low=0, high=1, default=1.0),
        "order": Setting("flag", default=True),
        "tokens": Setting("whole", low=16, high=1 << 20, default=1024),
    },
    check=no_check,
    depends_on_target=always,
    is_correction=never,
    needs_tokens=always,
    leaves=_leaves,
    undoes=frozenset({ROUNDED, FOLDED}),
    run=_run,
)
