"""Fine-tunes a model towards ternary weights, from its own answers; the outcome's weights are ternary, to the bit.

λ rises from 0 to 1 so that the model is never far from one that works. Sources: BitNet b1.58 (arXiv 2402.17764),
BitDistill (arXiv 2510.13998). One layer is left to `linear`, the norms to `sub_norms`, the run to `quant.learning`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from edgepack.errors import UnsupportedModelError
from edgepack.gguf.types import GGMLType
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.learning.answers import Asked
from edgepack.quant.learning.layers import blocks_of
from edgepack.quant.learning.lessons import learning_figures, open_lesson
from edgepack.quant.learning.loop import learn
from edgepack.quant.learning.models import kept_checkpoint, parameter_names, trainable_model
from edgepack.quant.learning.objectives import Distillation
from edgepack.quant.passes.coded_rows import CodedRows
from edgepack.quant.passes.run import PassOutcome, few
from edgepack.quant.passes.ternary.linear import BLOCK, TernaryLinear, scales_and_trits, ternary_weight
from edgepack.quant.passes.ternary.sub_norms import check_norms_fit, with_sub_norms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.quant.learning.settings import LearningSettings
    from edgepack.quant.passes.run import Figure, PassRun

_TOP = 64
_NORM_SEQUENCES = 8  # that the norms' first weights are measured on
_ROUTERS = ("gate", "router")  # small matrices that choose experts stay as they are
_Q4_BLOCK = 32


@dataclass(frozen=True)
class TernarySettings:
    """How a model becomes ternary.

    Attributes:
        reach: weights of a row under one scale; 0 for one scale a matrix.
        ramp: share of the steps over which λ rises from 0 to 1.
        rounds_inputs: whether activations are rounded to 8 bits by token.
        norms: whether each block gets two more norms.
        relations: weight of attention relations in what is learnt; 0 for none.
        layer: the block whose relations are compared; None for the last.
    """

    reach: int = BLOCK
    ramp: float = 0.4
    rounds_inputs: bool = True
    norms: bool = False
    relations: float = 0.1
    layer: int | None = None


def train_ternary(
    checkpoint: Checkpoint, settings: TernarySettings, learning: LearningSettings, run: PassRun
) -> PassOutcome:
    """Train every matrix inside the blocks towards ternary weights. Does not modify `checkpoint`.

    Args:
        checkpoint: the original, which is the teacher.
        settings: what becomes of it.
        learning: how; with 0 steps the outcome is the checkpoint.
        run: with tokens.

    Raises:
        UnsupportedModelError: no such matrices; norms or relations that the model's graph has no place for.
        EdgepackError: as `learn`.
    """
    if settings.norms:
        check_norms_fit(checkpoint.config)
    if not learning.steps:
        return PassOutcome(checkpoint, {"steps_run": 0}, ("ternary: 0 steps leave the model as it is",))
    notes: list[str] = []
    layer = BlockwiseModel(checkpoint).block_count - 1 if settings.layer is None else settings.layer
    objective = Distillation(Asked(_TOP, relations=layer if settings.relations else None), relations=settings.relations)
    lesson = open_lesson(checkpoint, run, learning, objective, "ternary")
    changed = checkpoint
    if settings.norms:
        tokens = run.required_tokens("pass 'ternary'")[:_NORM_SEQUENCES]
        changed = with_sub_norms(checkpoint, trainable_model(checkpoint, learning.device), tokens)
    student = trainable_model(changed, learning.device)
    layers = make_ternary(student, settings)
    learnt = learn(
        student, lesson.examples, lesson.objective, learning, run.folder / "ternary" / "learning",
        held_out=lesson.held_out, callbacks=[Strength(list(layers.values()), settings.ramp)], resume=run.resumable,
        label="Ternary learning", progress=run.progress, note=notes.append,
    )  # fmt: skip

    def value(path: str, parameter: torch.Tensor) -> torch.Tensor:
        found = layers.get(path)
        return parameter if found is None else ternary_weight(parameter, found.reach)

    kept = kept_checkpoint(changed, student, run.folder / "ternary" / "weights", value)
    coded, unfit = _coded(layers)
    names = parameter_names(student, changed)
    notes += few([f"ternary: '{names[path]}': {line}" for path, line in unfit.items()])
    figures: dict[str, Figure] = {**_figures(layers), **learning_figures(learnt, lesson)}
    return PassOutcome(kept, figures, tuple(notes), coded=coded if len(coded) else None)


class Strength(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Raises λ of some layers with the steps: 0 before the first, 1 from `ramp` of the run on.

    Args:
        layers: whose λ it is.
        ramp: share of the steps.
    """

    def __init__(self, layers: list[TernaryLinear], ramp: float) -> None:
        self._layers, self._ramp = layers, ramp

    def at(self, step: int, steps: int) -> float:
        """λ after `step` of `steps`."""
        rise = self._ramp * steps
        return min(step / rise, 1.0) if rise else 1.0

    def on_train_begin(self, _arguments: Any, state: Any, *_others: Any, **_keywords: Any) -> None:
        """As transformers calls it: also where a run goes on."""
        self._set(state)

    def on_step_begin(self, _arguments: Any, state: Any, *_others: Any, **_keywords: Any) -> None:
        """As transformers calls it."""
        self._set(state)

    def on_train_end(self, *_arguments: Any, **_keywords: Any) -> None:
        """The model ends as the file will be."""
        for layer in self._layers:
            layer.strength = 1.0

    def _set(self, state: Any) -> None:
        for layer in self._layers:
            layer.strength = self.at(state.global_step, state.max_steps)


def make_ternary(model: nn.Module, settings: TernarySettings) -> dict[str, TernaryLinear]:
    """Put ternary layers in the place of every matrix inside the blocks; modifies `model`.

    Returns:
        path of each weight → its layer.

    Raises:
        UnsupportedModelError: there is none.
    """
    blocks, found = blocks_of(model), {}
    prefix = next(path for path, module in model.named_modules() if module is blocks)
    for path, module in list(blocks.named_modules()):
        name = path.rpartition(".")[2]
        if type(module) is not nn.Linear or name in _ROUTERS:
            continue
        layer = TernaryLinear(module, settings.reach, rounds_inputs=settings.rounds_inputs)
        setattr(blocks.get_submodule(path.rpartition(".")[0]), name, layer)
        found[f"{prefix}.{path}.weight"] = layer
    if not found:
        kind = model.config.model_type
        raise UnsupportedModelError(f"pass 'ternary': model type '{kind}' has no linear layers inside its blocks")
    return found


def _figures(layers: dict[str, TernaryLinear]) -> dict[str, Figure]:
    """How many weights are ternary, and how many of them zero."""
    with torch.no_grad():
        zeros = sum(int((scales_and_trits(each.weight, each.reach)[1] == 0).sum()) for each in layers.values())
    weights = sum(each.weight.numel() for each in layers.values())
    return {"ternary_weights": weights, "zeros": zeros}


def _coded(layers: dict[str, TernaryLinear]) -> tuple[CodedRows, dict[str, str]]:
    """Exact bytes of rows that TQ1_0 and TQ2_0 have no blocks for, in the type that stands in; and a line each.

    A row that is no multiple of 256 becomes Q4_0 (`quant.types.choice`), whose own search misses a ternary scale by a
    rounding; one that is no multiple of 32 becomes F16, which holds it as it is.
    """
    coded, lines = CodedRows(), {}
    for path, layer in layers.items():
        columns = layer.in_features
        if columns % BLOCK == 0:
            continue
        lines[path] = (
            f"rows of {columns} are no multiple of {BLOCK}: TQ1_0 and TQ2_0 have no blocks for them, such a file holds"
            f" them in {'Q4_0' if columns % _Q4_BLOCK == 0 else 'F16'}, exactly (Q2_0 would hold rows of 64s)"
        )
        if columns % _Q4_BLOCK == 0:
            with torch.no_grad():
                scale, trits = (each.cpu().numpy() for each in scales_and_trits(layer.weight, layer.reach))
            coded.add(GGMLType.Q4_0, q4_rows(scale, trits), columns)
    return coded, lines


def q4_rows(scale: NDArray[np.float32], trits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows of Q4_0 blocks that stand for trit · scale: uint8 [rows, bytes of a row].

    Layout of ggml-common.h, block_q4_0: a float16 step, then weight i in the low and weight i + 16 in the high half of
    byte i, each raised by 8.

    Args:
        scale: float32 [rows, columns], the same over each 32, and exact in float16.
        trits: float32 [rows, columns].
    """
    rows, columns = trits.shape
    steps = scale.reshape(rows, -1, _Q4_BLOCK)[:, :, :1].astype(np.float16)
    raised = (trits.reshape(rows, columns // _Q4_BLOCK, _Q4_BLOCK) + 8).astype(np.uint8)
    packed = raised[:, :, :16] | (raised[:, :, 16:] << 4)
    return np.concatenate([np.ascontiguousarray(steps).view(np.uint8), packed], axis=2).reshape(rows, -1)
