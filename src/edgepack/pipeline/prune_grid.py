"""A grid of sparsities over one model: each level exported as `edgepack export --pass prune` would, packed and scored.

Which level is picked is `quant.passes.prune.grid`'s rule, printing `cli.prune_grid`'s.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.scoring import ScoringOptions, choose_chunking, open_candidate, sample_text, text_to_score
from edgepack.edge.fidelity.validate import validate
from edgepack.errors import UsageError
from edgepack.pipeline.accepted import check_request
from edgepack.pipeline.export import run_export
from edgepack.pipeline.fidelity import open_original
from edgepack.pipeline.makers.opened import opened_checkpoint, read_request_recipe, with_original
from edgepack.pipeline.request import ExportRequest
from edgepack.progress import Progress, silent
from edgepack.quant.passes.prune.grid import Level
from edgepack.quant.types.targets import find_target
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from edgepack.edge.fidelity.run import Text
    from edgepack.edge.fidelity.scorers.scorer import Chunking, Scorer
    from edgepack.model import Checkpoint
    from edgepack.pipeline.located import LocatedModel
    from edgepack.pipeline.outline import Made


@dataclass(frozen=True)
class GridRequest:
    """What is pruned and how it is scored.

    Attributes:
        model: a Hugging Face folder or a GGUF; of a model at a URL the folder of its small files.
        target: a gguf target.
        method: of the pass `prune` that sets single weights to zero.
        calibration: a text for the pass; None for the model's own samples.
        text: what is scored; None for the model's own samples.
        scoring: how it is scored.
        device: a torch device for the pass.
        recovery: keys of the pass and their values, `steps` among them, of levels that learn while they are pruned;
            empty for levels in one shot alone.
        progress: told of every stretch of work.
        located: a model at a URL; it writes no text for `text` to be left out.
    """

    model: Path
    target: str = "gguf-q8"
    method: str = "wanda"
    calibration: Path | None = None
    text: Path | None = None
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    device: str = "cpu"
    recovery: Mapping[str, float | str] = field(default_factory=dict)
    progress: Progress = silent
    located: LocatedModel | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """How many steps of recovery each sparsity is measured with, one after the other."""
        return (0, int(self.recovery["steps"])) if self.recovery else (0,)

    def pass_for(self, sparsity: float, steps: int = 0) -> str:
        """The pass of one level as `--pass` spells it."""
        gradual = {"schedule": "cubic", **self.recovery} if steps else {}
        given = "".join(f",{key}={value}" for key, value in gradual.items())
        return f"prune:method={self.method},sparsity={sparsity:g}{given}"

    def export_of(self, sparsity: float, steps: int = 0) -> ExportRequest:
        """The export of one level."""
        return ExportRequest(
            self.model, self.target, progress=self.progress, calibration=self.calibration, device=self.device,
            passes=(self.pass_for(sparsity, steps),), threads=self.scoring.threads or None,
            allow_requantize=self.model.is_file(),  # an experiment: what is kept is made by `edgepack export`
            original=None if self.located is None else self.located.checkpoint,
            remote=() if self.located is None else self.located.weights,
        )  # fmt: skip


class PruneGrid:
    """A model whose levels are measured one after the other; the original stays open for the length of a `with` block.

    Args:
        request: what is asked for.

    Raises:
        UsageError: a target that is none of ggml's types, a text that cannot be read.
    """

    def __init__(self, request: GridRequest) -> None:
        find_target(request.target)
        check_request(request.export_of(0.0))
        read_request_recipe(request.export_of(0.0, max(request.steps)))  # refuses what contradicts itself
        if request.calibration is not None:
            read_text(request.calibration)
        self._request = request
        self._text = None if request.text is None else text_to_score(request.text)
        self._opened = ExitStack()
        self._chosen: dict[int, NDArray[np.int64]] = {}
        self.notes: dict[str, None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._opened.close()

    def planned_bytes(self) -> int:
        """Length of the GGUF of any level, but for the passes' figures in its metadata; nothing is pruned for it."""
        return run_export(replace(self._request.export_of(0.0), dry_run=True)).bytes

    def measure(self, sparsity: float, steps: int = 0) -> Level:
        """Prune, with `steps` of recovery, write, pack and score one level; its files are removed again.

        Raises:
            EdgepackError: whatever pruning, writing or scoring finds wrong.
        """
        from edgepack.packaging.pack import pack_archive

        request = self._request
        reference, text, chunking = self._original
        threads = request.scoring.threads or None
        with TemporaryDirectory(prefix="edgepack-prune-") as folder:
            made = self._make(sparsity, steps, Path(folder))
            archive = Path(folder) / "model.edgepack"
            packed = pack_archive(made.gguf, archive, threads=threads, progress=request.progress)
            options = replace(request.scoring, ctx=chunking.ctx)
            with closing(open_candidate(made.gguf, options)) as candidate:
                (found,) = validate(reference, [candidate], text.text, chunking, request.progress)
        statistics = found.statistics
        return Level(sparsity, exp(statistics.candidate_loss.mean), statistics.agreement.mean, packed.bytes, steps)

    def _make(self, sparsity: float, steps: int, folder: Path) -> Made:
        """What `run_export` of the level makes, with tokens that all levels share."""
        from edgepack.export.recipe.passes import Passes
        from edgepack.export.recipe.values import RecipeOptions
        from edgepack.pipeline.makers.gguf import open_gguf

        checkpoint, tokens = self._checkpoint, self._tokens(steps)
        original = checkpoint if self._request.model.is_file() or self._request.located else None
        export = replace(self._request.export_of(sparsity, steps), original=original)
        options = RecipeOptions(folder, device=export.device, tokens=tokens, progress=export.progress)
        passes = Passes(checkpoint, read_request_recipe(export), options)
        made = open_gguf(export, passes).make(find_target(self._request.target), folder / "model.gguf")
        self.notes |= dict.fromkeys(made.notes)
        return made

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return opened_checkpoint(self._opened.enter_context(with_original(self._request.export_of(0.0))))

    def _tokens(self, steps: int) -> NDArray[np.int64]:
        """What levels with this many steps look at, or learn from; chosen once."""
        from edgepack.export.recipe.calibration import calibration_tokens
        from edgepack.quant.passes.training import sequences_learnt

        if steps not in self._chosen:
            export = self._request.export_of(0.0, steps)
            recipe = read_request_recipe(export)
            learnt = sequences_learnt(recipe.passes[0].settings)
            self._chosen[steps] = calibration_tokens(self._checkpoint, recipe, export.device, learnt)
        return self._chosen[steps]

    @property
    def text(self) -> Text:
        """What is scored."""
        return self._original[1]

    @cached_property
    def _original(self) -> tuple[Scorer, Text, Chunking]:
        request = self._request
        opened = open_original(request.model, request.located, request.scoring)
        reference = self._opened.enter_context(closing(opened))
        text = self._text or sample_text(reference)
        return reference, text, choose_chunking(reference, text.text, self._request.scoring)


def parse_sparsities(text: str) -> list[float]:
    """`0.6,0.65,0.7` as numbers; raises UsageError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--sparsity: expected numbers such as 0.6,0.65,0.7, got '{text}'") from None
