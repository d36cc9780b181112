"""Declares the pass `gptq`; the work is `quant.passes.gptq`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.quant.passes.registry import ROUNDED, PassDeclaration, always, never, no_check
from edgepack.quant.passes.settings import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.model import Checkpoint
    from edgepack.quant.passes.run import PassOutcome, PassRun
    from edgepack.quant.passes.settings import Settings


def _leaves(_settings: Settings) -> Mapping[str, str]:
    return {ROUNDED: "which has rounded the weights for the file: nothing may change them any more"}


def _run(checkpoint: Checkpoint, settings: Settings, run: PassRun) -> PassOutcome:
    from edgepack.quant.passes.gptq import GptqSettings, apply_gptq

    return apply_gptq(checkpoint, GptqSettings(**settings), run)


PASS = PassDeclaration(
    name="gptq",
    summary="weights are rounded to the file's own grids, each error fed back into what is not rounded yet",
    settings={"damping": Setting("number", low=0, high=1, default=0.01)},
    check=no_check,
    depends_on_target=always,
    is_correction=never,
    needs_tokens=always,
    leaves=_leaves,
    undoes=frozenset({ROUNDED}),
    run=_run,
)
