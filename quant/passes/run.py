"""What every pass is given and gives back, and the walk over blocks that passes on weights share.

It knows no method. Changed weights lie in files of a scratch folder and are read where they lie, so that memory
stays bounded by a block.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.errors import CalibrationError
from edgepack.model import OverriddenTensors
from edgepack.progress import silent
from edgepack.quant.calibration.block_context import BlockContext
from edgepack.quant.calibration.blocks import BlockwiseModel
from edgepack.quant.calibration.sweep import calibrated_model, sweep
from edgepack.quant.passes.array_folder import ArrayFolder
from edgepack.quant.passes.crew_blocks import CrewVisit
from edgepack.quant.passes.kept_blocks import KeptBlocks, Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.gguf.types import GGMLType
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.blocks import Block
    from edgepack.quant.calibration.statistics import LinearStatistics
    from edgepack.quant.calibration.sweep import BlockVisit
    from edgepack.quant.passes.coded_rows import CodedRows

Figure = float | int | str


@dataclass(frozen=True)
class PassRun:
    """What a pass is given beside its settings.

    Attributes:
        folder: scratch space on disk; it must outlive the pass's outcome.
        tokens: calibration tokens [sequences, length], or None for passes that look at weights alone.
        target_types: checkpoint name of a matrix → the type that the file will hold it in.
        with_importance: whether the file will be quantised with an importance matrix.
        device: a torch device.
        batch: sequences at a time; halved when the device's memory is full.
        resumable: whether the folder stays after a kill, so that what is done is kept for a run that goes on.
        factors: where low-rank factors are stored, or read from; None for neither.
        progress: told of each block done.
        crew: who runs the blocks of passes that can be split; None for this process.
    """

    folder: Path
    tokens: NDArray[np.int64] | None = None
    target_types: Mapping[str, GGMLType] = field(default_factory=dict)
    with_importance: bool = False
    device: str = "cpu"
    batch: int = 8
    resumable: bool = False
    factors: Path | None = None
    progress: Progress = silent
    crew: Crew | None = None

    def required_tokens(self, purpose: str) -> torch.Tensor:
        """The tokens for `purpose`, such as `pass 'awq'`; raises CalibrationError when there are none."""
        if self.tokens is None:
            raise CalibrationError(f"{purpose} needs calibration tokens: give a text, or let the model sample its own")
        return torch.from_numpy(np.ascontiguousarray(self.tokens, dtype=np.int64))


@dataclass(frozen=True)
class PassOutcome:
    """What a pass gives back.

    Attributes:
        checkpoint: the changed model; the pass's input is as it was.
        figures: what was measured, for the file's metadata and the report.
        notes: a line each on what was skipped and why.
        coded: exact bytes of rows that the pass has rounded for the file's own type, or None.
        low_rank: checkpoint name → (left [out, k], right [k, in]) to be added at run time by an adapter.
        measured: checkpoint name → moments of the inputs of every linear that are good enough for what is left to be
            quantised, so that nothing needs to be measured again; None where that is not so.
    """

    checkpoint: Checkpoint
    figures: Mapping[str, Figure]
    notes: tuple[str, ...] = ()
    coded: CodedRows | None = None
    low_rank: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    measured: Mapping[str, LinearStatistics] | None = None


def few(lines: Sequence[str], most: int = 3) -> list[str]:
    """The first lines, and how many more there are."""
    left = len(lines) - most
    return [*lines[:most], *([f"… and {left} more of the same kind"] if left > 0 else [])]


class VisitingWalk(Walk):
    """A walk over blocks with the activations that enter them."""

    @abstractmethod
    def __call__(self, visit: BlockVisit) -> list[str]:
        """Change a block's weights in place; returns the checkpoint names that it changed.

        Called once a block, in the model's order; its inputs come from the changed blocks before it.
        """

    def end(self, model: BlockwiseModel, tokens: torch.Tensor, hidden: torch.Tensor) -> None:
        """Called after the last block with its outputs `hidden` [sequences, length, width]; does nothing by itself."""


def change_weights(
    checkpoint: Checkpoint, run: PassRun, change: Callable[[Block], list[str]], label: str, walk: Walk
) -> Checkpoint:
    """Let `change` change each block in turn, in place, with nothing run through it; for passes on weights alone.

    Args:
        checkpoint: only read.
        run: what the pass is given; no tokens are needed.
        change: called once a block; returns the checkpoint names that it changed.
        label: names the pass in the progress and names its scratch folder.
        walk: whose method `change` is.

    Returns:
        `checkpoint` with the changed tensors in place of its own.
    """
    model, changed = BlockwiseModel(checkpoint, run.device), ArrayFolder(run.folder / label)
    kept = KeptBlocks(run.folder / label, resumable=run.resumable)
    kept.restore(changed, walk)
    with run.progress(label, model.block_count - kept.done, " blocks") as advance:
        for index in range(kept.done, model.block_count):
            with model.block(index) as block:
                for name in change(block):
                    changed.put(name, block.as_stored(name), checkpoint.tensors.specs[name].dtype)
            kept.add(changed, walk)
            advance(1)
    return replace(checkpoint, tensors=OverriddenTensors(checkpoint.tensors, changed))


def change_blocks(checkpoint: Checkpoint, run: PassRun, walk: VisitingWalk, label: str) -> Checkpoint:
    """Let `walk` change each block in turn, as SparseGPT and GPTQ do: later blocks see the changed ones.

    Args:
        checkpoint: only read.
        run: its tokens are required.
        walk: called once a block.
        label: names the pass in the progress and names its scratch folder.

    Returns:
        `checkpoint` with the changed tensors in place of its own.
    """
    changed, kept = ArrayFolder(run.folder / label), KeptBlocks(run.folder / label, resumable=run.resumable)
    kept.restore(changed, walk)

    tokens = run.required_tokens(f"pass '{label}'")
    model = calibrated_model(checkpoint, run.device)
    context = BlockContext.of(model, tokens, run.batch)
    shared = None if run.crew is None else run.crew.share(context)

    def visitor(visit: BlockVisit) -> torch.Tensor:
        if run.crew is not None:
            visit = CrewVisit(visit.block, visit.inputs, visit.runner, run.crew, shared)
        for name in walk(visit):
            changed.put(name, visit.block.as_stored(name), checkpoint.tensors.specs[name].dtype)
        outputs = visit.outputs_with(changed) if isinstance(visit, CrewVisit) else visit.outputs()
        kept.add(changed, walk, outputs)
        return outputs

    hidden = kept.entering
    if kept.done < model.block_count:
        hidden = sweep(
            model, tokens, visitor, batch=run.batch, progress=run.progress, label=label, first_block=kept.done,
            hidden=hidden,
        )  # fmt: skip
    if hidden is not None:
        walk.end(model, tokens, hidden)
    return replace(checkpoint, tensors=OverriddenTensors(checkpoint.tensors, changed))
