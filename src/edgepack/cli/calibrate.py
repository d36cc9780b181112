"""`edgepack calibrate`: how sure a file may be of its answers, measured and put into it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import force_option, json_option, note, print_json, say, terminal_progress
from edgepack.cli.scoring_options import gpu_option, report_option, threads_option
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from edgepack.pipeline.confidence.results import CalibrationResult, FormResult

_PATH = click.Path(path_type=Path)


@click.command("calibrate")
@click.argument("file", type=_PATH)
@click.option("--questions", type=_PATH, metavar="JSONL",
              help="One object a line: prompt, answer, perhaps choices.")  # fmt: skip
@click.option("--from-text", type=_PATH, metavar="FILE",
              help="Make questions of a text instead: the next word, and three others as frequent.")  # fmt: skip
@click.option("--items", type=click.IntRange(1), default=2000, show_default=True, help="At most, of a text.")
@click.option("-o", "--output", type=_PATH, help="An archive or a GGUF with the calibration.  [default: measure alone]")
@click.option("--chat", is_flag=True, help="Ask through the chat template, as a chat client would.")
@click.option("--method", type=click.Choice(["auto", "temperature", "platt", "isotonic"]), default="auto",
              show_default=True, help="auto: the one that foresees unseen answers best.")  # fmt: skip
@click.option("--accuracy", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Router: this share of the given answers is right.")  # fmt: skip
@click.option("--escalate", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Router: this share of questions is escalated.  [default: 0.2]")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Of a written answer.")
@click.option("--ctx", type=click.IntRange(32), default=512, show_default=True, help="Of a question and its answer.")
@threads_option
@gpu_option
@click.option("--engine", type=click.Choice(["auto", "llama-cpp-python", "xllamacpp"]), default="auto",
              show_default=True, help="What runs the file; choices need llama-cpp-python.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Of the questions that are made, and of the halves.")  # fmt: skip
@report_option
@trust_options
@force_option
@json_option
def command(file: Path, as_json: bool, report: Path | None, **values: Any) -> None:
    """Ask FILE questions whose answers are known; put into it how sure it may be of its answers.

    Half of the answers fit the calibration, the other half judge it. Then `run --confidence` and `serve` say how
    likely an answer is right, and whether to give it or to escalate. Sign an archive after this.
    """
    from edgepack.api.confidence import calibrate
    from edgepack.files.claim import claimed_output
    from edgepack.files.output import atomic_output

    inputs = [file, *(values[name] for name in ("questions", "from_text", "output") if values[name] is not None)]
    with ExitStack() as claims:
        if report is not None:
            claims.enter_context(claimed_output(report, inputs=inputs, force=values["force"]))
        result = calibrate(file, **values, progress=terminal_progress, note=note)
        if report is not None:
            with atomic_output(report) as stream:
                stream.write(result.html().encode())
    if as_json:
        print_json(result.json())
    else:
        _print(result)


def _print(result: CalibrationResult) -> None:
    from edgepack.quantities import format_size

    for form, one in result.forms.items():
        _print_form(form, one, str(result.wish))
    if result.output is not None:
        note(f"{result.output}: {format_size(result.bytes)}")


def _print_form(form: str, one: FormResult, wish: str) -> None:
    raw, kept, routed = one.methods["raw"], one.methods[one.method], one.routed
    low, high = kept.ece_interval
    accuracy = f"{100 * one.accuracy:.1f} % of {one.judged_on} right"
    say(
        f"{form}: {accuracy}; calibration error {raw.ece:.3f} → {kept.ece:.3f} "
        f"({low:.3f} to {high:.3f}; {kept.ece_by_chance:.3f} by chance), AUROC {raw.auroc:.3f} → {kept.auroc:.3f}, "
        f"by {one.method}"
    )
    say(
        f"{form}: router for {wish}: from confidence {routed.threshold:.3f} on, {100 * routed.given:.1f} % of "
        f"questions are answered, {100 * routed.accuracy:.1f} % of them rightly"
    )
