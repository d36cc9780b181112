"""Joins it all: a file opened, asked, fitted on one half, judged on the other, and the calibration put into it.

How any of that is done is the other modules' of this folder; where files lie in archives is `packaging`'s.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edgepack.edge.chat.template import choose_template, special_tokens
from edgepack.edge.confidence.binding import adapter_digests, contents_digest
from edgepack.edge.confidence.calibrators import Raw
from edgepack.edge.confidence.opening import find_record
from edgepack.edge.confidence.record import Fitted, Record
from edgepack.edge.fidelity.certificate_file import deliver_noted
from edgepack.edge.install.model_file import prepare
from edgepack.edge.llama.check import check_generates
from edgepack.edge.llama.engines import choose_engine, open_model
from edgepack.edge.llama.options import Adapter, RuntimeOptions
from edgepack.errors import CalibrationError
from edgepack.gguf import keys
from edgepack.pipeline.confidence import fitting
from edgepack.pipeline.confidence.asking import Asking, ask
from edgepack.pipeline.confidence.results import CalibrationResult, FormResult, risk_curve, scores
from edgepack.pipeline.confidence.router import Wish, choose_threshold, measure_route
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.edge.confidence.record import Form
    from edgepack.edge.install.model_file import ModelFile
    from edgepack.edge.llama.engine import EngineWish
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.pipeline.confidence.asking import Answered
    from edgepack.pipeline.confidence.fitting import Method
    from edgepack.pipeline.confidence.questions import Question
    from edgepack.progress import Progress

DEFAULT_ESCALATED = 0.2
_BATCH = 512


@dataclass(frozen=True)
class CalibrateOptions:
    """How a file is calibrated.

    Attributes:
        ctx: tokens that a question and its answer may have.
        threads: of the CPU; 0 is every core that is free.
        n_gpu_layers: layers on the GPU; -1 is all.
        engine: which package runs the file.
        chat: ask through the chat template.
        max_tokens: of a written answer.
        method: of calibration; `auto` takes the one that foresees unseen answers best.
        wish: what the router is to reach.
        seed: of halves, folds and intervals.
        trust: whose archives are taken; the user's trust store by default.
    """

    ctx: int = 512
    threads: int = 0
    n_gpu_layers: int = 0
    engine: EngineWish = "auto"
    chat: bool = False
    max_tokens: int = 64
    method: Literal["auto"] | Method = "auto"
    wish: Wish = field(default_factory=lambda: Wish(escalate=DEFAULT_ESCALATED))
    seed: int = 0
    trust: TrustPolicy | None = None


def calibrate(
    file: Path,
    questions: Sequence[Question],
    origin: str,
    output: Path | None,
    options: CalibrateOptions,
    progress: Progress = silent,
    note: Callable[[str], object] = lambda _text: None,
) -> CalibrationResult:
    """Ask a file questions, fit its confidence on half of the answers, judge it on the other half, and store it.

    What the file says already of other forms of question is kept where it holds. Signatures of an archive do not
    carry over: sign after calibrating.

    Args:
        file: a GGUF or an `.edgepack`.
        questions: with their answers.
        origin: of the questions, for people.
        output: `.edgepack` for an archive; any other name gets the GGUF; None stores nothing.
        options: how.
        progress: told of questions and bytes.
        note: told what a person would like to know.

    Raises:
        CalibrationError: too few answers, or of one kind alone.
        CheckFailedError: the wanted accuracy is out of reach.
        UsageError: a question and its answer are longer than the context.
        DependencyError: scipy, or an engine, is not installed.
        EdgepackError: whatever opening or packing finds wrong; nothing is left behind.
    """
    fitting.require_scipy()
    source = prepare(file, trust=options.trust, progress=progress, note=note)
    check_generates(source.header)
    fitting.check_count(len(questions), origin)
    began = time.monotonic()
    answers, left_out = ask_file(source, questions, options, str(file), progress)
    seconds = time.monotonic() - began
    forms = _fitted_forms(answers, left_out, options)
    for form, reason in left_out.items():
        note(f"{form}: not calibrated: {reason}")
    adapters = tuple(Adapter(path) for path in source.adapters)
    found = find_record(source.path, source.header, adapters)
    digest = found.record.digest if found.record else contents_digest(source.path, source.header, progress)
    known = dict(found.record.fitted) if found.record else {}
    known.update({form: result.fitted for form, result in forms.items()})
    written = 0
    if output is not None:
        record = Record(digest, tuple(adapter_digests(adapters)), known)
        written = deliver_noted(file, source.path, record.metadata(), keys.CONFIDENCE, output, options.trust, progress)
    return CalibrationResult(
        file, origin, len(questions), options.wish, forms, left_out, digest, seconds, output, written
    )


def ask_file(
    source: ModelFile, questions: Sequence[Question], options: CalibrateOptions, label: str, progress: Progress
) -> tuple[dict[Form, list[Answered]], dict[Form, str]]:
    """Open a file and ask it.

    Args:
        source: the file, made ready.
        questions: with their answers.
        options: how.
        label: names the file in messages.
        progress: told of questions.

    Returns:
        Answers by form, and why forms that the questions would allow were not asked.
    """
    engine = choose_engine(options.engine).name
    trained = source.header.get(f"{source.header.get(keys.ARCHITECTURE)}.context_length")
    ctx = min(options.ctx, trained) if isinstance(trained, int) and trained > 0 else options.ctx
    opened = RuntimeOptions(
        n_ctx=ctx, n_batch=min(_BATCH, ctx), threads=options.threads,
        n_gpu_layers=options.n_gpu_layers, max_outputs=1, engine=engine,
        adapters=tuple(Adapter(path) for path in source.adapters), trust=options.trust,
    )  # fmt: skip
    with ExitStack() as stack:
        template = None
        if options.chat:
            template = choose_template(None, source.template, special_tokens(source.header), label)
            stack.callback(template.close)
        model = stack.enter_context(open_model(source.path, opened))
        logits = engine == "llama-cpp-python"
        answers = ask(Asking(model, template, options.max_tokens, ctx, choices=logits), questions, progress)
    left_out: dict[Form, str] = {}
    if not logits and template is None and any(question.choices for question in questions):
        left_out["choice"] = "scoring choices needs the engine llama-cpp-python"
    return answers, left_out


def _fitted_forms(
    answers: dict[Form, list[Answered]], left_out: dict[Form, str], options: CalibrateOptions
) -> dict[Form, FormResult]:
    """Each form's result; a form that cannot be fitted is left out where another one can be."""
    found = {form: _fitted_form(form, some, options) for form, some in answers.items()}
    forms = {form: one for form, one in found.items() if isinstance(one, FormResult)}
    problems = {form: one for form, one in found.items() if isinstance(one, CalibrationError)}
    left_out.update({form: str(problem) for form, problem in problems.items()})
    if not forms:
        raise next(iter(problems.values()), CalibrationError("calibrate: expected answers, the file gave none"))
    return forms


def _fitted_form(form: Form, answers: Sequence[Answered], options: CalibrateOptions) -> FormResult | CalibrationError:
    try:
        fitting.check_answers(answers, f"{form} questions")
        return fit_form(form, answers, options)
    except CalibrationError as error:
        return error


def fit_form(form: Form, answers: Sequence[Answered], options: CalibrateOptions) -> FormResult:
    """Fit every method on half of the answers, judge each on the other, and choose the router's threshold.

    Raises:
        CalibrationError: a half holds too few right or wrong answers.
        CheckFailedError: the wanted accuracy is out of reach.
    """
    first, second = fitting.halves([one.group for one in answers], options.seed)
    fitted_on, judged_on = [answers[index] for index in first], [answers[index] for index in second]
    for half in (fitted_on, judged_on):
        fitting.check_half(half, f"{form} questions")
    fits: dict[Method, fitting.Fit] = {
        method: fitting.fit(method, fitted_on, options.seed) for method in fitting.METHODS
    }
    method = fitting.choose(fits) if options.method == "auto" else options.method
    kept = fits[method]
    right, groups = fitting.truths(judged_on), [one.group for one in judged_on]
    said: dict[str, NDArray[np.float64]] = {
        name: fitting.confidences(one.calibrator, judged_on) for name, one in fits.items()
    }
    raw = fitting.confidences(Raw(), judged_on)
    threshold, interval = choose_threshold(
        kept.unseen, fitting.truths(fitted_on), [one.group for one in fitted_on], options.wish, options.seed
    )
    routed = measure_route(threshold, interval, said[method], right, raw, groups, options.seed)
    methods = {name: scores(one, right, groups, options.seed) for name, one in {"raw": raw, **said}.items()}
    lengths = [one.tokens for one in fitted_on]
    figures = {
        "judged_on": len(judged_on), "accuracy": routed.accuracy_of_all, "given": routed.given,
        "accuracy_given": routed.accuracy, "ece": methods[method].ece, "ece_raw": methods["raw"].ece,
        "auroc": methods[method].auroc,
    }  # fmt: skip
    fitted = Fitted(form, kept.calibrator, threshold, (min(lengths), max(lengths)), figures)
    return FormResult(
        fitted, len(fitted_on), len(judged_on), routed.accuracy_of_all, methods, method,
        risk_curve(raw, right), risk_curve(said[method], right), routed,
    )  # fmt: skip
