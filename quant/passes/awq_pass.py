"""Declares the pass `awq`; the work is `quant.passes.awq`'s."""

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
    from edgepack.quant.passes.awq.weights import AwqSettings, apply_awq

    return apply_awq(checkpoint, AwqSettings(**settings), run)


PASS = PassDeclaration(
    name="awq",
    summary="scales that protect what activations make important, folded into the layers before; clips",
    settings={
        "scale": Setting("flag", default=True),
        "clip": Setting("flag", default=True),
        "search_bits": Setting("whole", low=-2, high=2, default=0),
        "sequences": Setting("whole", low=1, high=4096, default=8),
        "integer_bits": Setting("whole", low=0, high=8, default=0),
        "group": Setting("whole", low=8, high=65536, default=128),
    },
    check=no_check,
    depends_on_target=always,
    is_correction=never,
    needs_tokens=always,
    leaves=_leaves,
    undoes=frozenset({ROUNDED, FOLDED}),
    run=_run,
)
