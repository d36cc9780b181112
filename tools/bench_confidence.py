"""How well calibrated files are, before and after, and what their routers do, on questions that nobody was fitted on.

    python tools/bench_confidence.py FILE... --text TEXT [--items 5000] [--sums 300] [--answers FOLDER] [--costs]
        [--figure forms,methods,risk,router,costs]

Questions are made of the text: the next word, and three others as frequent. With `--sums`, files with a chat template
are asked sums too, through it. Answers are kept in a folder where one is named, so that files can be asked one by one
and judged together. `--costs` measures what the numbers behind a verdict take from generation.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figure_file import run_with_figure
from part_cost import counted

from edgepack.edge.confidence.features import Features, Observation
from edgepack.edge.install.model_file import prepare
from edgepack.edge.llama.engines import open_model
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.errors import CheckFailedError
from edgepack.pipeline.confidence.asking import Answered
from edgepack.pipeline.confidence.calibrate import CalibrateOptions, ask_file, fit_form
from edgepack.pipeline.confidence.cloze import cloze_questions
from edgepack.pipeline.confidence.questions import Question
from edgepack.pipeline.confidence.router import Wish
from edgepack.progress import silent
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.edge.confidence.record import Form
    from edgepack.pipeline.confidence.results import FormResult

COVERAGES = (0.2, 0.5, 0.8, 0.9, 1.0)
WISHES = (Wish(escalate=0.2), Wish(escalate=0.5), Wish(accuracy=0.8), Wish(accuracy=0.9))
SUM_TOKENS = 24
_COST_TOKENS, _COST_ROUNDS = 96, 5


@dataclass(frozen=True)
class Asked:
    """One file's answers of one form."""

    name: str
    form: Form
    answers: Sequence[Answered]
    cpu_seconds: float
    memory: str  # MB of the process at most

    def result(self, wish: Wish) -> FormResult:
        """What fitting on one half gives on the other."""
        return fit_form(self.form, self.answers, CalibrateOptions(wish=wish))


def sums(count: int, seed: int = 0) -> list[Question]:
    """Questions after sums of small numbers, no operand of which is the answer; each at most once."""
    pairs = random.Random(seed).sample([(first, second) for first in range(1, 41) for second in range(1, 21)], count)
    return [
        Question(f"sum {group}", f"Calculate {first} plus {second}.", str(first + second), (), 0, group, "turn")
        for group, (first, second) in enumerate(pairs)
    ]


def ask_all(path: Path, questions: list[Question], options: CalibrateOptions, kept: Path | None) -> list[Asked]:
    """Every form that the questions allow; answers that are kept already are not asked for again."""
    name = f"{path.stem}-{'sums' if options.chat else 'cloze'}-{len(questions)}.json"
    if kept is not None and (kept / name).is_file():
        return [_read(one) for one in json.loads((kept / name).read_text())]
    found = _ask(path, questions, options)
    if kept is not None:
        kept.mkdir(exist_ok=True)
        (kept / name).write_text(json.dumps([asdict(one) for one in found]))
    return found


def _read(told: dict[str, Any]) -> Asked:
    answers = [
        Answered(**{**one, "seen": Observation(Features(**one["seen"]["features"]), tuple(one["seen"]["scores"]))})
        for one in told["answers"]
    ]
    return Asked(**{**told, "answers": answers})


def _ask(path: Path, questions: list[Question], options: CalibrateOptions) -> list[Asked]:
    source = prepare(path, progress=silent)
    with counted() as cost:
        answers, _left_out = ask_file(source, questions, options, str(path), silent)
    return [Asked(path.stem, form, some, cost.seconds, cost.megabytes) for form, some in answers.items()]


def percent(value: float) -> str:
    """For a table."""
    return f"{100 * value:.1f} %"


def span(values: tuple[float, float]) -> str:
    """Likewise."""
    return f"{values[0]:.3f} to {values[1]:.3f}"


def print_forms(rows: list[tuple[Asked, FormResult]]) -> None:
    """One line a file and form: from what it was, to what it is."""
    print(
        "| file | questions | judged | right | calibration error, raw | after | 95 % | by chance | kept | CPU s | MB |"
    )
    print("|---|---|---:|---:|---:|---:|---|---:|---|---:|---:|")
    for asked, one in rows:
        raw, kept = one.methods["raw"], one.methods[one.method]
        print(
            f"| {asked.name} | {asked.form} | {one.judged_on:,} | {percent(one.accuracy)} | {raw.ece:.4f} | "
            f"{kept.ece:.4f} | {span(kept.ece_interval)} | {kept.ece_by_chance:.4f} | {one.method} | "
            f"{asked.cpu_seconds:.0f} | {asked.memory} |"
        )
    print()


def print_methods(rows: list[tuple[Asked, FormResult]]) -> None:
    """Every method's figures."""
    print("| file | questions | method | calibration error | Brier | log-loss | AUROC | mean risk |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for asked, one in rows:
        for method, scores in one.methods.items():
            print(
                f"| {asked.name} | {asked.form} | {method} | {scores.ece:.4f} | {scores.brier:.4f} | "
                f"{scores.log_loss:.4f} | {scores.auroc:.4f} | {scores.area_under_risk:.4f} |"
            )
    print()


def print_risk(rows: list[tuple[Asked, FormResult]]) -> None:
    """Share of wrong answers among the surest, by raw log-probabilities and calibrated."""
    heads = " | ".join(f"{percent(coverage)} given" for coverage in COVERAGES)
    print(f"| file | questions | sure by | {heads} |")
    print("|---|---|---|" + "---:|" * len(COVERAGES))
    for asked, one in rows:
        for name, curve in (("raw", one.before), (one.method, one.after)):
            risks = [curve.risk[curve.coverage.index(coverage)] for coverage in COVERAGES]
            print(f"| {asked.name} | {asked.form} | {name} | " + " | ".join(map(percent, risks)) + " |")
    print()


def print_router(every: list[Asked]) -> None:
    """What thresholds that were chosen on one half do on the other."""
    print("| file | questions | wanted | from confidence | 95 % | given | given right | 95 % | raw, as many | all |")
    print("|---|---|---|---:|---|---:|---:|---|---:|---:|")
    for asked in every:
        for wish in WISHES:
            try:
                one = asked.result(wish).routed
            except CheckFailedError:
                print(f"| {asked.name} | {asked.form} | {wish} | out of reach | | | | | | |")
                continue
            print(
                f"| {asked.name} | {asked.form} | {wish} | {one.threshold:.3f} | {span(one.threshold_interval)} | "
                f"{percent(one.given)} | {percent(one.accuracy)} | {span(one.accuracy_interval)} | "
                f"{percent(one.raw_accuracy)} | {percent(one.accuracy_of_all)} |"
            )
    print()


def print_costs(paths: list[Path]) -> None:
    """CPU time of generating with and without what a verdict needs; the engine's threads are this process's."""
    print("| file | engine | tokens | CPU ms a token | with chances | more |")
    print("|---|---|---:|---:|---:|---:|")
    for path in paths:
        for engine in ("llama-cpp-python", "xllamacpp"):
            options = RuntimeOptions(n_ctx=512, threads=1, engine=engine)
            with open_model(prepare(path, progress=silent).path, options) as model:
                best = {chances: float("inf") for chances in (0, 10)}
                for _ in range(_COST_ROUNDS):
                    for chances in (0, 10):
                        began = time.process_time()
                        sampling = SamplingOptions(temperature=0, chances=chances)
                        count = len(list(model.generate(model.tokenize("The old man"), sampling, _COST_TOKENS)))
                        best[chances] = min(best[chances], (time.process_time() - began) / max(count, 1))
            more = best[10] / best[0] - 1
            print(
                f"| {path.stem} | {engine} | {count} | {1000 * best[0]:.2f} | {1000 * best[10]:.2f} | {percent(more)} |"
            )
    print()


def main() -> None:
    """Ask, fit, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--text", type=Path, required=True, help="questions are made of it")
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--sums", type=int, default=0, help="sums asked of files with a chat template")
    parser.add_argument("--answers", type=Path, metavar="FOLDER", help="keep answers there, and take those that are")
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    questions = cloze_questions(read_text(given.text), given.items, 0, given.text.name)
    every: list[Asked] = []
    for path in given.files:
        every += ask_all(path, questions, CalibrateOptions(threads=given.threads), given.answers)
        if given.sums and prepare(path, progress=silent).template is not None:
            chat = CalibrateOptions(threads=given.threads, chat=True, max_tokens=SUM_TOKENS)
            every += ask_all(path, sums(given.sums), chat, given.answers)
    rows = [(asked, asked.result(WISHES[0])) for asked in every]
    print_forms(rows)
    print_methods(rows)
    print_risk(rows)
    print_router(every)
    if given.costs:
        print_costs(given.files)


if __name__ == "__main__":
    run_with_figure(main)
