"""Declares the pass `lowrank`; the work is `quant.passes.lowrank`'s, a correction's file `export.recipe`'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import RecipeError
from edgepack.quant.passes.registry import ROUNDED, ZEROS, PassDeclaration, never
from edgepack.quant.passes.settings import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.model import Checkpoint
    from edgepack.quant.passes.run import PassOutcome, PassRun
    from edgepack.quant.passes.settings import Settings


def _corrects(settings: Settings) -> bool:
    return bool(settings["method"] == "correction")


def _needs_tokens(settings: Settings) -> bool:
    return bool(settings["method"] in ("whitened", "correction"))


def _check(settings: Settings, given: frozenset[str], path: str) -> None:
    corrects = _corrects(settings)
    if settings["method"] == "stored":
        for key in sorted({"rank", "variance", "size", "covariance"} & given):
            raise RecipeError(f"{path}.{key}: method 'stored' has no such setting: the file has ranks")
        return
    limits = [key for key in ("rank", "variance", "size") if settings[key] is not None]
    if len(limits) != 1:
        allowed = "'rank' or 'size'" if corrects else "'rank' or 'variance'"
        raise RecipeError(f"{path}: expected exactly one of {allowed}, got {' and '.join(limits) or 'none'}")
    misplaced = {"variance", "output"} if corrects else {"size", "covariance"}
    for key in sorted(misplaced & given):
        raise RecipeError(f"{path}.{key}: method '{settings['method']}' has no such setting")


def _leaves(_settings: Settings) -> Mapping[str, str]:
    return {}


def _run(checkpoint: Checkpoint, settings: Settings, run: PassRun) -> PassOutcome:
    from edgepack.quant.passes.lowrank.weights import LowRankSettings, factorise

    apart = settings["output"] == "adapter"
    chosen = LowRankSettings(settings["method"], settings["rank"], settings["variance"], apart)
    return factorise(checkpoint, chosen, run)


PASS = PassDeclaration(
    name="lowrank",
    summary="layers become products of narrow factors, or a finished file gets a correction of low rank",
    settings={
        "method": Setting("text", ("svd", "whitened", "correction", "stored"), default="svd"),
        "rank": Setting("whole", low=1, high=65536),
        "variance": Setting("number", low=0, high=1),
        "size": Setting("size", low=1),
        "covariance": Setting("text", ("diagonal", "full"), default="full"),
        "output": Setting("text", ("merged", "adapter"), default="merged"),
    },
    check=_check,
    depends_on_target=never,
    is_correction=_corrects,
    needs_tokens=_needs_tokens,
    leaves=_leaves,
    undoes=frozenset({ROUNDED, ZEROS}),
    run=_run,
)
