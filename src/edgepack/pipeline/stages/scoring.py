"""How far a stage's model is from the original: scored as `edgepack validate` does, through llama.cpp.

A pass's model is written as a GGUF of floats that lose nothing of it, in scratch. Bars are `stages.constraints`'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.outcome import clean
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.export.recipe.kept_outcomes import KeptTensors
from edgepack.packaging.trust.policy import ANYONE
from edgepack.pipeline.export import run_export
from edgepack.pipeline.fidelity import run_validation
from edgepack.pipeline.request import ExportRequest
from edgepack.pipeline.verdict import opener_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.edge.fidelity.run import FidelityRun
    from edgepack.model import Checkpoint, TensorSource
    from edgepack.pipeline.stages.records import Figures

_NONE_SEEN = 3.0  # the "rule of three" (Hanley & Lippman-Hand 1983): a 95 % bound
_FLOATS = {frozenset({"bf16"}): "gguf-bf16", frozenset({"f16"}): "gguf-f16"}


@dataclass(frozen=True)
class StageScorer:
    """Scores what stages made, all over the same text.

    Attributes:
        request: of the export; names the original.
        settings: of the recipe's `[validate]`.
        max_memory: the original is read block by block where it would take more in float32; None for as usual.
        whole_bytes: of the original in float32.
    """

    request: ExportRequest
    settings: Mapping[str, Any]
    max_memory: int | None
    whole_bytes: int

    def score(self, path: Path, adapters: tuple[Path, ...] = ()) -> FidelityRun:
        """A file, held against the original; raises as `run_validation`."""
        text = self.settings["text"]
        limited = self.max_memory is not None and self.whole_bytes > self.max_memory
        options = ScoringOptions(
            ctx=self.settings["ctx"], max_chunks=self.settings["chunks"], threads=self.request.threads or 0,
            blockwise=True if limited else None, adapters=adapters, trust=ANYONE,
        )  # fmt: skip
        return run_validation(
            self.request.source, [path], None if text is None else Path(text), options, self.request.progress,
            opener=opener_of(self.request),
        )  # fmt: skip

    def score_checkpoint(self, checkpoint: Checkpoint, folder: Path) -> FidelityRun:
        """A model between two stages.

        Args:
            checkpoint: as a pass left it.
            folder: for the scratch of its GGUF.
        """
        given = self.request
        request = ExportRequest(
            given.model, _lossless(checkpoint), progress=given.progress, original=checkpoint, pre=given.pre,
            allow_requantize=given.allow_requantize, threads=given.threads,
        )  # fmt: skip
        with TemporaryDirectory(dir=folder, prefix="scored-") as scratch:
            path = Path(scratch) / "model.gguf"
            run_export(replace(request, output=path))
            return self.score(path)


def _lossless(checkpoint: Checkpoint) -> str:
    """The smallest target that holds every weight as it is, as far as the types of the files say."""
    return _FLOATS.get(frozenset(_stored(checkpoint.tensors)), "gguf-f32")


def _stored(tensors: TensorSource) -> set[str]:
    """How the matrices lie on disk: a changed one that is kept in two bytes is exact in its source's type."""
    specs = {name: spec for name, spec in tensors.specs.items() if len(spec.shape) > 1}
    found = set()
    while isinstance(tensors, KeptTensors):
        for name in list(specs):
            if name in tensors.kept:
                found.add(tensors.kept.stored_dtype(name))
                del specs[name]
        tensors = tensors.base
    return found | {tensors.specs[name].dtype if name in tensors.specs else "f32" for name in specs}


def accuracy_figures(run: FidelityRun) -> Figures:
    """What constraints and metrics read of a scored file."""
    statistics = run.candidates[0].validation.statistics
    low, high = statistics.agreement.share_interval()
    drop_low, drop_high = statistics.accuracy_drop.interval()
    found: Figures = clean({
        "tokens": statistics.tokens, "agreement": statistics.agreement.mean, "agreement_low": low,
        "agreement_high": high, "mean_kl": statistics.divergence.mean, "accuracy_drop": statistics.accuracy_drop.mean,
        "accuracy_drop_low": drop_low,
    })  # fmt: skip
    # Where no answer changed, the spread between chunks is nothing: 3 / n bounds a rate of which n tokens show none.
    least = statistics.accuracy_drop.mean + _NONE_SEEN / statistics.tokens
    return {**found, "accuracy_drop_high": max(drop_high, least)}
