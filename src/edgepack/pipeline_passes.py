"""Runs a recipe: its passes on a checkpoint, the plan of the file that results, and corrections beside it.

Methods are left to `quant.passes`, planning and writing to `export`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import RecipeError
from edgepack.gguf.types import Value, ValueType, boolean, f32, string
from edgepack.progress import silent
from edgepack.recipe import pattern_group

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.mapped_model import MappedModel
    from edgepack.export.plan import ExportPlan
    from edgepack.export.rows import Rows
    from edgepack.gguf.types import GGMLType
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.collect import Calibration
    from edgepack.quant.passes.coded_rows import CodedRows
    from edgepack.quant.passes.run import Figure, PassOutcome, PassRun
    from edgepack.quant.targets import Target
    from edgepack.quant.type_choice import Overrides
    from edgepack.recipe import PassStep, Recipe


@dataclass(frozen=True)
class RecipeOptions:
    """What the user decides beside recipe and target.

    Attributes:
        folder: scratch space; it must live until the plan is written.
        overrides: types chosen by hand; None for none.
        pre: the pre-tokenizer's name where its structure is not known.
        device: a torch device for the passes.
        batch: calibration sequences at a time.
        save_calibration: a `.safetensors` file for the statistics, which makes calibration resumable; or None.
        progress: told of each block done.
    """

    folder: Path
    overrides: Overrides | None = None
    pre: str | None = None
    device: str = "cpu"
    batch: int = 8
    save_calibration: Path | None = None
    progress: Progress = silent


@dataclass(frozen=True)
class PreparedExport:
    """What a recipe gives: a plan to write, and what happened.

    Attributes:
        plan: of the file; its metadata tells the recipe and the figures.
        reference: the changed model under GGUF names before any pass rounded it for the file; what corrections are
            measured against.
        checkpoint: the changed model.
        calibration: statistics of the changed model, or None where nothing needed them.
        figures: for each pass, by its number: name and figures.
        notes: a line each on what was skipped and why.
        low_rank: checkpoint name → (left, right) to be added at run time by an adapter.
        corrections: the recipe's steps that correct the finished file.
    """

    plan: ExportPlan
    reference: MappedModel
    checkpoint: Checkpoint
    calibration: Calibration | None
    figures: tuple[Mapping[str, Figure], ...]
    notes: tuple[str, ...]
    low_rank: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    corrections: tuple[PassStep, ...] = ()


def prepare_export(checkpoint: Checkpoint, recipe: Recipe, target: Target, options: RecipeOptions) -> PreparedExport:
    """Run the recipe's passes and plan the file. Does not modify `checkpoint`.

    Raises:
        EdgepackError: whatever a pass, the mapping or the plan finds wrong.
    """
    from edgepack.export.mapped_model import map_checkpoint

    work = _Work(checkpoint, recipe, target, options)
    for step in recipe.passes:
        if not step.is_correction:
            work.run(step)
    calibration = work.calibrate() if recipe.calibration.get("importance") or work.needs_moments else None
    plan = work.plan(calibration)
    reference = map_checkpoint(work.unrounded, pre=options.pre)
    corrections = tuple(step for step in recipe.passes if step.is_correction)
    return PreparedExport(
        plan,
        reference,
        work.checkpoint,
        calibration,
        tuple(work.figures),
        tuple(work.notes),
        work.low_rank,
        corrections,
    )


class _Work:
    """A recipe under way."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, target: Target, options: RecipeOptions) -> None:
        self.checkpoint, self.recipe, self.target, self.options = checkpoint, recipe, target, options
        self.unrounded = checkpoint  # as it was before a pass rounded it for the file
        self.with_importance = bool(recipe.calibration.get("importance"))
        self.figures: list[Mapping[str, Figure]] = []
        self.notes: list[str] = []
        self.low_rank: dict[str, Any] = {}
        self.coded: CodedRows | None = None
        self._tokens: NDArray[np.int64] | None = None

    @property
    def needs_moments(self) -> bool:
        """Whether a correction needs statistics of the changed model."""
        return any(step.is_correction for step in self.recipe.passes)

    def tokens(self) -> NDArray[np.int64]:
        """Calibration tokens: of the recipe's text, or sampled from the model."""
        if self._tokens is None:
            self._tokens = calibration_tokens(self.checkpoint, self.recipe, self.options.device)
        return self._tokens

    def run(self, step: PassStep) -> None:
        """One pass, and what it leaves."""
        outcome = RUNNERS[step.name](self, step)
        self.checkpoint = outcome.checkpoint
        if outcome.coded is None:
            self.unrounded = outcome.checkpoint
        self.figures.append({"name": step.name, **_given(step), **outcome.figures})
        self.notes += outcome.notes
        self.low_rank |= outcome.low_rank
        self.coded = outcome.coded or self.coded

    def pass_run(self, with_tokens: bool = True) -> PassRun:
        """What a pass is given now."""
        from edgepack.quant.passes.run import PassRun

        return PassRun(
            folder=self.options.folder / f"pass-{len(self.figures)}",
            tokens=self.tokens() if with_tokens else None,
            target_types=self._target_types(),
            with_importance=self.with_importance,
            device=self.options.device,
            batch=self.options.batch,
            progress=self.options.progress,
        )

    def _target_types(self) -> dict[str, GGMLType]:
        """Checkpoint name of every tensor → the type of the GGUF tensor that it goes into."""
        from edgepack.export.mapped_model import map_checkpoint
        from edgepack.gguf.types import GGMLType
        from edgepack.quant.type_choice import Candidate, Overrides, choose_types

        mapped = map_checkpoint(self.checkpoint, pre=self.options.pre)
        candidates = [Candidate(name, rows.shape, GGMLType.F32) for name, rows in mapped.tensors.items()]
        overrides = self.options.overrides or Overrides()
        types = choose_types(candidates, self.target, mapped.facts, overrides, has_importance=self.with_importance)
        return {source: types[name] for name, rows in mapped.tensors.items() for source in source_names(rows)}

    def calibrate(self) -> Calibration:
        """Statistics of the model as the passes left it."""
        from edgepack.quant.calibration.collect import collect

        full = any(step.is_correction and step.settings["covariance"] == "full" for step in self.recipe.passes)
        return collect(
            self.checkpoint, self.tokens(), with_hessian=full, device=self.options.device, batch=self.options.batch,
            save_to=self.options.save_calibration, progress=self.options.progress,
        )  # fmt: skip

    def plan(self, calibration: Calibration | None) -> ExportPlan:
        """The plan of the file, with the recipe and all figures in its metadata."""
        from edgepack.export.coded import with_coded_rows
        from edgepack.export.mapped_model import map_checkpoint
        from edgepack.export.plan import PlanOptions, plan_export
        from edgepack.quant.type_choice import Overrides

        mapped = map_checkpoint(self.checkpoint, pre=self.options.pre)
        importance = None
        if calibration is not None and self.with_importance:
            importance = importance_by_gguf_name(calibration, mapped)
        plan = plan_export(mapped, self.target, PlanOptions(self.options.overrides or Overrides(), importance))
        plan = replace(plan, metadata={**plan.metadata, **recipe_metadata(self.recipe, self.figures)})
        return plan if self.coded is None else with_coded_rows(plan, self.coded)


def calibration_tokens(checkpoint: Checkpoint, recipe: Recipe, device: str = "cpu") -> NDArray[np.int64]:
    """The tokens [sequences, length] that a recipe's `[calibration]` asks for.

    Raises:
        RecipeError: the text cannot be read.
        CalibrationError: the text is too short.
    """
    from pathlib import Path

    from edgepack.quant.calibration.text import own_samples, text_sequences

    asked = recipe.calibration
    if asked["text"] is None:
        return own_samples(
            checkpoint, length=asked["length"], sequences=asked["sequences"], device=device, seed=asked["seed"]
        )
    try:
        text = Path(asked["text"]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"calibration.text: '{asked['text']}' cannot be read as UTF-8 text: {error}") from error
    return text_sequences(checkpoint, text, length=asked["length"], sequences=asked["sequences"])


def source_names(rows: Rows) -> set[str]:
    """The checkpoint's tensors that a GGUF tensor is made of."""
    name = getattr(rows, "name", None)
    if isinstance(name, str):
        return {name}
    parts = getattr(rows, "parts", None) or [getattr(rows, "base", None)]
    return set().union(*(source_names(part) for part in parts if part is not None))


def importance_by_gguf_name(calibration: Calibration, mapped: MappedModel) -> dict[str, NDArray[np.float32]]:
    """E[x²] of every GGUF matrix whose inputs were measured; joined matrices share their inputs."""
    found = {}
    for name, rows in mapped.tensors.items():
        known = [source for source in sorted(source_names(rows)) if source in calibration.statistics]
        if known and len(rows.shape) == 2:
            importance = calibration.statistics[known[0]].mean_square
            if importance.shape == rows.shape[-1:]:
                found[name] = importance
    return found


def recipe_metadata(recipe: Recipe, figures: list[Mapping[str, Figure]]) -> dict[str, Value]:
    """`edgepack.recipe`, and `edgepack.pass.N.KEY` for every figure of pass N (from 0)."""
    metadata = {"edgepack.recipe": string(recipe.text)}
    for number, values in enumerate(figures):
        for key, value in values.items():
            metadata[f"edgepack.pass.{number}.{key}"] = _value(value)
    return metadata


def _value(figure: Figure) -> Value:
    if isinstance(figure, bool):
        return boolean(figure)
    if isinstance(figure, int):
        return Value(ValueType.INT64, figure)
    return f32(figure) if isinstance(figure, float) else string(str(figure))


def _given(step: PassStep) -> dict[str, Figure]:
    """A step's settings that have a value."""
    return {key: value for key, value in step.settings.items() if value is not None}


def _run_prune(work: _Work, step: PassStep) -> PassOutcome:
    from edgepack.quant.passes.prune.layers import drop_layers
    from edgepack.quant.passes.prune.masks import Pattern
    from edgepack.quant.passes.prune.weights import PruneSettings, prune_weights

    settings = step.settings
    if settings["method"] == "layers":
        return drop_layers(work.checkpoint, settings["layers"], work.pass_run())
    zeros, group = pattern_group(settings["pattern"])
    sparsity = zeros / group if group else settings["sparsity"]
    pattern = Pattern(sparsity, group, settings["compare"])
    chosen = PruneSettings(settings["method"], pattern, settings["allocation"])
    return prune_weights(work.checkpoint, chosen, work.pass_run())


def _run_awq(work: _Work, step: PassStep) -> PassOutcome:
    from edgepack.quant.passes.awq.weights import AwqSettings, apply_awq

    chosen = AwqSettings(**{key: step.settings[key] for key in ("scale", "clip", "search_bits", "sequences")})
    return apply_awq(work.checkpoint, chosen, work.pass_run())


def _run_gptq(work: _Work, step: PassStep) -> PassOutcome:
    from edgepack.quant.passes.gptq import GptqSettings, apply_gptq

    return apply_gptq(work.checkpoint, GptqSettings(step.settings["damping"]), work.pass_run())


def _run_low_rank(work: _Work, step: PassStep) -> PassOutcome:
    from edgepack.quant.passes.lowrank.weights import LowRankSettings, factorise

    settings = step.settings
    apart = settings["output"] == "adapter"
    chosen = LowRankSettings(settings["method"], settings["rank"], settings["variance"], apart)
    return factorise(work.checkpoint, chosen, work.pass_run(with_tokens=settings["method"] == "whitened"))


RUNNERS: dict[str, Callable[[_Work, PassStep], PassOutcome]] = {
    "prune": _run_prune,
    "awq": _run_awq,
    "gptq": _run_gptq,
    "lowrank": _run_low_rank,
}
