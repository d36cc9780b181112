"""`edgepack.tune`: what costs no bytes in a quantised GGUF, tuned against its original; `pipeline.tuning` does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.opening import ignore
from edgepack.api.places import files_of
from edgepack.errors import UsageError
from edgepack.files.claim import claimed_output
from edgepack.gguf.reader import read_header
from edgepack.pipeline.located import opened_checkpoint_at
from edgepack.pipeline.tuning.sampled import DEFAULT_CTX, DEFAULT_MINUTES, DEFAULT_SEQUENCES, tuning_tokens
from edgepack.pipeline.tuning.tune import Tuned, default_parts, tune_gguf
from edgepack.progress import silent
from edgepack.quant.tuning.parts import STE
from edgepack.quant.tuning.settings import TuningSettings
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edgepack.api.values import FilePath, JsonObject
    from edgepack.progress import Progress


@dataclass(frozen=True)
class TuneResult:
    """What tuning gave.

    Attributes:
        tuned: the file, and divergence on held-out text before and after.
    """

    tuned: Tuned

    @property
    def output(self) -> Path:
        """The file that was written."""
        return self.tuned.output

    def json(self) -> JsonObject:
        """The object that `edgepack tune --json` prints."""
        tuned = self.tuned
        return {
            "output": str(tuned.output), "bytes": tuned.bytes, "seconds": round(tuned.seconds, 3),
            "steps": tuned.steps, "planned_steps": tuned.planned, "best_step": tuned.best_step,
            "dropped": tuned.dropped, "tokens": tuned.tokens,
            "held_out_kl": {"before": tuned.before, "after": tuned.after},
            "curve": [{"step": step, "held_out_kl": divergence} for step, divergence in tuned.curve],
            "tensors": tuned.tuned, "left": dict(tuned.left), "notes": list(tuned.notes),
        }  # fmt: skip


def tune(
    file: FilePath,
    reference: FilePath,
    text: FilePath,
    output: FilePath,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    rate: float = 1.0,
    parts: Iterable[str] | None = None,
    moves: str = STE,
    device: str = "cpu",
    ctx: int = DEFAULT_CTX,
    sequences: int = DEFAULT_SEQUENCES,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    pre: str | None = None,
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> TuneResult:
    """Tune what costs no bytes in a quantised GGUF until it says what its original says.

    The result has the same tensors of the same types. A part of the text is held out; a state that is worse on it than
    the file given is never written.

    Args:
        file: the GGUF.
        reference: what it was made of: a Hugging Face folder, a URL of one as text, or a GGUF that can be read back
            into one.
        text: a UTF-8 text file to learn from.
        output: where it is written.
        steps: how many; None for as many as `minutes` give.
        minutes: wall time of all of it; 10 where neither is given.
        rate: a factor on all rates.
        parts: what is moved: `vectors` (norms, biases), `rows` (all steps of a row), `steps` (of blocks), `codes` (of
            groups in a block), `integers`. None: what measured best, for refined files vectors and steps, for others
            rows, codes and integers.
        moves: how integers are moved: `ste`, straight-through, or `gumbel`, a relaxation of the choice to move by one.
        device: a torch device.
        ctx: tokens of a sequence; no more than the model knows.
        sequences: at most this many, spread evenly over the text.
        seed: of the order of sequences.
        resume: go on with an interrupted run of the same file, text and options; `rate` may be another.
        force: replace a file that is there already; never an input.
        pre: the pre-tokenizer's name, where its structure is not known.
        progress: told of each stretch of work.
        note: told what is done, a line at a time.

    Raises:
        UsageError: options that contradict each other, or a file with nothing to tune.
        CalibrationError: the text is too short.
        CheckpointError: the file was not made of the reference.
        NumericError: divergence became NaN or infinite; the text names the step.
        EdgepackError: the model cannot be opened.
    """
    if steps is None and minutes is None:
        minutes = DEFAULT_MINUTES
    if ctx < 2 or sequences < 2:
        raise UsageError(f"tune: expected ctx and sequences of at least 2, got {ctx} and {sequences}")
    path, target = Path(file), Path(output)
    wanted = default_parts(read_header(path)) if parts is None else frozenset(parts)
    settings = TuningSettings(
        steps=steps, minutes=minutes, rate=rate, parts=wanted, moves=moves, seed=seed, device=device
    )
    with (
        claimed_output(target, inputs=files_of(path, reference, text), force=force),
        opened_checkpoint_at(reference) as checkpoint,
    ):
        chosen, line = tuning_tokens(checkpoint, read_text(Path(text)), ctx, sequences)
        if line:
            note(line)
        tuned = tune_gguf(path, checkpoint, chosen, settings, target, progress, pre=pre, resume=resume, note=note)
    return TuneResult(tuned)
