"""`edgepack.calibrate`: how sure a file may be of its answers; the work is `pipeline.confidence`'s."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgepack.api.opening import ignore
from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import FilePath, optional_path
from edgepack.edge.fidelity.certificate_file import places_of_copy
from edgepack.errors import UsageError
from edgepack.files.claim import claimed_output
from edgepack.pipeline.confidence import calibrate as calibration
from edgepack.pipeline.confidence.cloze import cloze_questions
from edgepack.pipeline.confidence.fitting import METHODS, require_scipy
from edgepack.pipeline.confidence.questions import Question, read_questions
from edgepack.pipeline.confidence.router import Wish
from edgepack.progress import silent
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.edge.llama.engine import EngineWish
    from edgepack.pipeline.confidence.fitting import Method
    from edgepack.pipeline.confidence.results import CalibrationResult
    from edgepack.progress import Progress

DEFAULT_ITEMS = 2000
_LEAST_CTX = 32


def calibrate(
    file: FilePath,
    questions: FilePath | None = None,
    output: FilePath | None = None,
    *,
    from_text: FilePath | None = None,
    items: int = DEFAULT_ITEMS,
    chat: bool = False,
    method: Literal["auto"] | Method = "auto",
    accuracy: float | None = None,
    escalate: float | None = None,
    max_tokens: int = 64,
    ctx: int = 512,
    threads: int | None = None,
    n_gpu_layers: int = 0,
    engine: EngineWish = "auto",
    seed: int = 0,
    force: bool = False,
    trusted: Trusted = (),
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> CalibrationResult:
    """Ask a file questions whose answers are known, and store how sure it may be of its answers.

    Half of the answers fit the calibration, the other half judge it. `run --confidence`, `serve` and `Model.verdict`
    read what is stored. Signatures do not carry over to the new file: sign after calibrating.

    Args:
        file: a GGUF or an `.edgepack`; its calibration of other forms of question stays where it holds.
        questions: JSONL, one object a line: `prompt`, `answer`, perhaps `choices` (then `answer` is the right one's
            text or number).
        output: an `.edgepack`, or any other name for the GGUF; None measures alone.
        from_text: in place of questions, a text of which some are made: the next word, and three others as frequent.
        items: the most that are made of a text.
        chat: ask through the chat template, as a chat client would; else prompts are continued as they stand.
        method: `temperature`, `platt`, `isotonic`, or `auto` for the one that foresees unseen answers best.
        accuracy: the router gives answers of which this share is right.
        escalate: the router escalates this share of questions; 0.2 where neither is said.
        max_tokens: of a written answer; it ends with its line before, in a chat with the turn, after a text's next
            word with the word.
        ctx: tokens that a question and its answer may have.
        threads: of the CPU; by default cores that are free.
        n_gpu_layers: layers on the GPU, -1 for all.
        engine: `llama-cpp-python`, `xllamacpp` (which scores no choices), or `auto`.
        seed: of the questions that are made, of halves, folds and intervals.
        force: replace files that are there already; never an input.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        progress: told of questions asked.
        note: told what a person would like to know.

    Raises:
        UsageError: a file is absent or none, a line is wrong, a question and its answer are longer than `ctx`.
        CalibrationError: fewer than 100 answers, or fewer than 10 right or 10 wrong ones.
        CheckFailedError: no threshold reaches the wanted accuracy; or nobody trusted signed the archive.
        TemplateError: `chat`, and the model has no chat template.
        DependencyError: scipy is not installed.
        EdgepackError: whatever opening or packing finds wrong; nothing is left behind.
    """
    path, policy = Path(file), policy_for(trusted)
    options = _options(
        calibration.CalibrateOptions(
            ctx, threads or 0, n_gpu_layers, engine, chat, max_tokens, method, _wish(accuracy, escalate), seed, policy
        )
    )
    require_scipy()
    if not path.is_file():
        raise UsageError(f"'{path}': no such file")
    asked, origin = _questions(optional_path(questions), optional_path(from_text), items, seed, chat=chat)
    inputs = [path, *(Path(one) for one in (questions, from_text) if one is not None)]
    target = optional_path(output)
    with ExitStack() as claims:
        for place in places_of_copy(path, target, policy):
            claims.enter_context(claimed_output(place, inputs=inputs, force=force))
        return calibration.calibrate(path, asked, origin, target, options, progress, note)


def _options(options: calibration.CalibrateOptions) -> calibration.CalibrateOptions:
    if options.method not in ("auto", *METHODS):
        raise UsageError(f"method '{options.method}': expected one of auto, {', '.join(METHODS)}")
    if options.ctx < _LEAST_CTX or not 1 <= options.max_tokens < options.ctx:
        raise UsageError(
            f"expected ctx >= {_LEAST_CTX} and max_tokens of 1 to ctx - 1, got {options.ctx} and {options.max_tokens}"
        )
    return options


def _wish(accuracy: float | None, escalate: float | None) -> Wish:
    if accuracy is None and escalate is None:
        return Wish(escalate=calibration.DEFAULT_ESCALATED)
    return Wish(accuracy, escalate)


def _questions(
    path: Path | None, text: Path | None, items: int, seed: int, *, chat: bool
) -> tuple[Sequence[Question], str]:
    if (path is None) == (text is None):
        raise UsageError("questions: expected a file of them or a text to make them of, one of the two")
    if path is not None:
        return read_questions(path, chat=chat), path.name
    assert text is not None
    if chat:
        raise UsageError("chat: expected a file of questions: what is made of a text is no chat")
    made = cloze_questions(read_text(text), items, seed, text.name)
    return made, f"the next word in {text.name}, seed {seed}"
