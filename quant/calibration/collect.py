"""Measures activation statistics of every linear layer of a model over token sequences.

Where tokens come from is left to `text`, how files look to `storage`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.progress import silent
from edgepack.quant.calibration.block_context import BlockContext, stage_bytes
from edgepack.quant.calibration.collect_relay import FillingFolder, StatisticsLeg, open_statistics
from edgepack.quant.calibration.hessian_files import HessianFolder
from edgepack.quant.calibration.products import own_products
from edgepack.quant.calibration.statistics import LinearStatistics, MomentAccumulator
from edgepack.quant.calibration.storage import ResumeFolder, load_statistics, save_statistics
from edgepack.quant.calibration.sweep import BatchRunner, calibrated_model, sweep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress
    from edgepack.quant.calibration.blocks import BlockwiseModel
    from edgepack.quant.calibration.sweep import BlockVisit


@dataclass(frozen=True)
class Calibration:
    """Statistics of a model over a text.

    Attributes:
        statistics: checkpoint name of a two-dimensional weight → the moments of its inputs. A token embedding
            tied to the output matrix is listed under its own name with the output matrix's inputs.
        about: settings of the run: `tokens_sha256`, `sequences`, `length`.
    """

    statistics: Mapping[str, LinearStatistics]
    about: Mapping[str, str] = field(default_factory=dict)

    def importance(self, names: Mapping[str, str] | None = None) -> dict[str, NDArray[np.float32]]:
        """E[x²] per input channel: what llama.cpp's importance matrix holds.

        Args:
            names: checkpoint name → GGUF name; the result then has GGUF names and leaves out what has none.

        Returns:
            name → float32 [columns].
        """
        if names is None:
            return {name: values.mean_square for name, values in self.statistics.items()}
        return {names[name]: v.mean_square for name, v in self.statistics.items() if name in names}


def collect(
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    *,
    with_hessian: bool = False,
    device: str = "cpu",
    batch: int = 8,
    save_to: Path | None = None,
    keep_in: Path | None = None,
    progress: Progress = silent,
    crew: Crew | None = None,
) -> Calibration:
    """Run `checkpoint` over `tokens` and keep the moments of every linear layer's inputs.

    Does not modify `checkpoint`. Memory: one block, its activations, and with `with_hessian` all Hessians
    in float32, or with `keep_in` those of one block.

    Args:
        checkpoint: a causal language model that transformers can run.
        tokens: [sequences, length].
        with_hessian: whether to keep H = XᵀX / count [in, in] of every layer.
        device: a torch device.
        batch: sequences at a time; halved when the device's memory is full.
        save_to: a `.safetensors` file. When it holds the result of the same run it is loaded instead; a run
            that was interrupted resumes from the folder beside it.
        keep_in: a folder for every block's statistics in place of `save_to`: an interrupted run resumes from it, and
            Hessians lie there and are read when they are asked for. It must stay as long as the result is used.
        progress: told of each block done.
        crew: who runs the blocks, each block on one worker; None for this process. The results are the same.

    Raises:
        NumericError: NaN or infinity in weights or activations; the text names the layer.
        ResourceError: the device's memory is full with one sequence at a time.
    """
    about = _about(checkpoint, tokens, with_hessian, own_products(checkpoint, device))
    if save_to is not None and save_to.exists():
        statistics, found = load_statistics(save_to)
        if found.get("key") == about["key"]:
            return Calibration(statistics, about)
    model, resume = calibrated_model(checkpoint, device), None
    if keep_in is not None:
        resume = ResumeFolder(keep_in, about["key"], HessianFolder(keep_in, model.block_count))
    elif save_to is not None:
        resume = ResumeFolder(save_to.with_name(f".{save_to.name}.run"), about["key"])
    statistics = _Collector(model, tokens, with_hessian, batch, resume, crew).run(progress)
    if save_to is not None and resume is not None:
        save_statistics(save_to, statistics, about)
        resume.remove()
    return Calibration(statistics, about)


def _about(
    checkpoint: Checkpoint, tokens: NDArray[np.int64], with_hessian: bool, products: torch.dtype
) -> dict[str, str]:
    """Settings of a run, with a `key` that two runs share only when their results would be equal."""
    about = {
        "tokens_sha256": hashlib.sha256(np.ascontiguousarray(tokens, dtype=np.int64).tobytes()).hexdigest(),
        "sequences": str(tokens.shape[0]),
        "length": str(tokens.shape[1]),
        "hessian": str(with_hessian).lower(),
        "products": str(products).removeprefix("torch."),
    }
    model = [sorted(checkpoint.config.items()), _sample(checkpoint)]
    return {**about, "key": hashlib.sha256(json.dumps([about, model], default=str).encode()).hexdigest()}


def _sample(checkpoint: Checkpoint) -> str:
    """A digest of one row of every tensor: enough to tell changed weights from the same weights."""
    digest = hashlib.sha256()
    for name, spec in checkpoint.tensors.specs.items():
        middle = spec.rows // 2
        digest.update(name.encode() + checkpoint.tensors.read_rows(name, middle, middle + 1).tobytes())
    return digest.hexdigest()


class _Collector:
    """One run over the blocks, resumed where an earlier one stopped."""

    def __init__(
        self,
        model: BlockwiseModel,
        tokens: NDArray[np.int64],
        with_hessian: bool,
        batch: int,
        resume: ResumeFolder | None,
        crew: Crew | None,
    ) -> None:
        self._crew, self.model = crew, model
        self.tokens = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))
        self.with_hessian, self.batch, self.resume = with_hessian, batch, resume
        self.statistics: dict[str, LinearStatistics] = {}

    def run(self, progress: Progress) -> dict[str, LinearStatistics]:
        done, known, activations = (0, {}, None) if self.resume is None else self.resume.load()
        self.statistics.update(known)
        start = None if activations is None else torch.from_numpy(activations)
        if self._crew is None:
            hidden = sweep(
                self.model, self.tokens, self._visit, batch=self.batch, progress=progress, first_block=done,
                hidden=start,
            )  # fmt: skip
        else:
            hidden = self._relayed(self._crew, done, start, progress)
        self._observe_head(hidden)
        return self.statistics

    def _relayed(self, crew: Crew, first: int, entering: torch.Tensor | None, progress: Progress) -> torch.Tensor:
        """What leaves the last block, every block having been visited by a crew."""
        if entering is None:
            runner = BatchRunner(self.model, self.tokens, self.batch)
            with self.model.shell():
                entering = runner.map(lambda start, stop: self.model.embed(self.tokens[start:stop]))
        context = crew.share(
            (BlockContext.of(self.model, self.tokens, self.batch),
             self.with_hessian)
        )  # fmt: skip
        blocks = range(first, self.model.block_count)
        with tempfile.TemporaryDirectory(prefix="edgepack-relay-") as folder:
            leg = StatisticsLeg(FillingFolder(Path(folder)), entering, self.batch, first, self._keep)
            with progress("Calibrating", len(blocks), " blocks") as advance:
                for _block in crew.relay(open_statistics, context, blocks, leg, need=stage_bytes(self.model)):
                    advance(1)
            return leg.last

    def _keep(self, index: int, found: dict[str, LinearStatistics], outputs: NDArray[np.float32]) -> None:
        self.statistics.update(found if self.resume is None else self.resume.save(index, found, outputs))

    def _visit(self, visit: BlockVisit) -> torch.Tensor:
        found, outputs = visit.observe(list(visit.block.linears), self.with_hessian)
        self._keep(visit.block.index, found, outputs.numpy())
        return outputs

    def _observe_head(self, hidden: torch.Tensor) -> None:
        found = head_statistics(self.model, self.tokens, hidden, self.batch, self.with_hessian)
        self.statistics.update(found if self.resume is None else self.resume.put("head", found))


def head_statistics(
    model: BlockwiseModel, tokens: torch.Tensor, hidden: torch.Tensor, batch: int, with_hessian: bool = False
) -> dict[str, LinearStatistics]:
    """Moments of what enters the output matrix, under its checkpoint name; empty where the model has none.

    Args:
        model: its final norm and output matrix are loaded.
        tokens: [sequences, length].
        hidden: the last block's outputs for them [sequences, length, width].
        batch: sequences at a time.
        with_hessian: whether to keep H as well.
    """
    name = model.head_name
    if name is None:
        return {}
    accumulator = MomentAccumulator(with_hessian)
    with model.shell():
        for start in range(0, len(hidden), batch):
            part = hidden[start : start + batch].to(model.device)
            accumulator.add(model.head_inputs(part, tokens[start : start + batch]))
    return {name: accumulator.result(name)}
