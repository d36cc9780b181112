"""Fidelity at equal memory and at equal download: llama.cpp's best of each type beside edgepack's, part by part.

    python tools/fidelity_text.py texts
    python tools/bench_fidelity.py MODEL --texts texts -o FOLDER [--only equal-memory,equal-shipped] [--dry-run]

Parts: floor, equal-memory, equal-shipped, equal-both, top95, ingredients, calibration, budgets; times are told with
each. FOLDER keeps every point (frontier.json, and frontier.html of all of them): a part takes what another has made,
and an interrupted run goes on where it was. How long it takes is told first; --dry-run tells only that. --kept prints
the tables of what FOLDER has and makes nothing.

llama.cpp's files are quantised by ggml itself (edgepack's export is byte for byte llama-quantize's), with and without
an importance matrix of the same calibration text, and packed by our archive with both coders, the smaller one counted.
Every file is run by llama.cpp as a device runs it, against transformers in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fidelity_parts import PARTS, Texts
from fidelity_study import BenchMaker

from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.pipeline.frontier.found import RESULT
from edgepack.pipeline.frontier.ledger import Ledger
from edgepack.pipeline.frontier.report import write_report
from edgepack.pipeline.frontier.request import SEQUENCES, StudyRequest
from edgepack.pipeline.frontier.study import Study
from edgepack.pipeline.frontier.telling import told_time

if TYPE_CHECKING:
    from edgepack.pipeline.frontier.found import Frontier
    from edgepack.pipeline.frontier.points import Spec


def request_of(arguments: argparse.Namespace, texts: Texts) -> StudyRequest:
    """The study that every part adds points to."""
    scoring = ScoringOptions(arguments.ctx, max_chunks=arguments.chunks, threads=arguments.threads)
    return StudyRequest(
        arguments.model, texts.calibration, texts.tests, arguments.output, texts.others, scoring=scoring,
        sequences=arguments.sequences, length=arguments.length, resume=True, keep_work=True,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip


def kept_of(request: StudyRequest, specs: list[Spec]) -> list[Spec]:
    """Those that the study has, finished or under way, with every text scored."""
    path, texts = request.output / RESULT, {text.name for text in request.texts}
    done = {each["id"] for each in json.loads(path.read_text())["points"]} if path.is_file() else set()
    ledger = Ledger(request.output, Study(request, specs, BenchMaker).about, resume=True)
    found = {spec.id: ledger.read(spec.slug) for spec in specs}
    return [spec for spec in specs if spec.id in done or ((point := found[spec.id]) and set(point.texts) == texts)]


def unique(specs: list[Spec]) -> list[Spec]:
    """Each point once, in order."""
    return list({spec.id: spec for spec in specs}.values())


def main() -> None:
    """Make what the parts ask for, print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path, required=True, help="what tools/fidelity_text.py wrote")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="of calibration, for every method")
    parser.add_argument("--length", type=int, help="of these, in tokens")
    parser.add_argument("--ctx", type=int, help="of scored chunks; default by what the model makes use of")
    parser.add_argument("--chunks", type=int, help="of each text; all by default")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--bisections", type=int, default=3, help="of part top95")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--kept", action="store_true", help="print what a finished FOLDER has, make nothing")
    arguments = parser.parse_args()
    unknown = set(arguments.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--only: no part {', '.join(unknown)}: {', '.join(PARTS)}")
    texts = Texts(arguments.texts)
    parts = {name: PARTS[name] for name in arguments.only.split(",")}
    request = request_of(arguments, texts)
    specs = unique([spec for part in parts.values() for spec in part.specs()])
    if arguments.kept:
        specs, arguments.bisections = kept_of(request, specs), 0
    if arguments.dry_run:
        found = Study(request, specs, BenchMaker).forecast()
        for name, seconds in {**found.once, **found.points}.items():
            print(f"{told_time(seconds):>8}  {name}")
        print(f"{len(found.points)} points are left: about {told_time(found.seconds)} on this machine")
        return
    told = Study(request, specs, BenchMaker, write_report).run()
    for name, part in parts.items():
        told = more(request, specs, part.further(told, arguments.bisections), told, part, arguments.bisections)
        print(f"\n## {name}\n")
        print(part.table(told))


def more(
    request: StudyRequest, specs: list[Spec], further: list[Spec], told: Frontier, part: object, rounds: int
) -> Frontier:
    """The study with the points that a part asks for once it has seen the first ones."""
    for _ in range(rounds):
        if not further:
            break
        specs += further
        told = Study(replace(request), unique(specs), BenchMaker, write_report).run()
        further = part.further(told, rounds)  # type: ignore[attr-defined]
    return told


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
