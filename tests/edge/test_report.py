"""The page is self-contained, says the verdict and shows hostile text as text; charts hold what they were given."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references.scorers_of_arrays import LetterTokenizer, TableScorer

from edgepack.edge.fidelity.gates import Gates
from edgepack.edge.fidelity.report.charts import Axis, Point, bars, line, scatter
from edgepack.edge.fidelity.report.page import render
from edgepack.edge.fidelity.run import Candidate, FidelityRun, FileFindings, Text, WeightError, pareto_front
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.validate import validate

TEXT = "".join(chr(97 + (i * i) % 26) for i in range(3000))


class Hostile(LetterTokenizer):
    def piece(self, token: int) -> str:
        return f"<script>alert({token})</script>"


def run_of(noises: list[float], gates: Gates) -> str:
    chunking = Chunking(64)
    candidates = [TableScorer(noise=noise, tokenizer=Hostile()) for noise in noises]
    found = validate(TableScorer(), candidates, TEXT, chunking)
    findings = FileFindings((WeightError("blk.0.attn_q.weight", "Q4_K", 0.07, suspect=False),), ("a & b",))
    parts = tuple(
        Candidate(Path(f"file{index}.gguf"), 1000 * (9 - index), Path("installed.gguf"), validation, findings)
        for index, validation in enumerate(found)
    )
    return render(FidelityRun(parts, chunking, Text(TEXT, "letters"), "table", tuple(found[:1])), gates)


def test_the_page_needs_no_other_file_and_runs_no_script() -> None:
    page = run_of([0.5], Gates(0.5))
    assert not re.search(r"(src|href)\s*=|@import|url\(|<script", page)
    assert "&lt;script&gt;" in page


def test_the_page_says_the_verdict_gates_and_suspicions() -> None:
    good, bad = run_of([0.01], Gates(0.5)), run_of([1.0], Gates(0.99))
    assert ">Passed<" in good
    assert ">Failed<" not in good
    assert ">Failed<" in bad
    assert "must be at least 0.99" in bad
    assert "First goes clearly wrong at token" in bad
    assert "a &amp; b" in bad


def test_the_page_is_made_for_light_dark_and_paper() -> None:
    page = run_of([0.5], Gates())
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_a_comparison_shows_size_against_divergence() -> None:
    assert "Size against divergence" in run_of([0.1, 0.3, 0.9], Gates())
    assert "Size against divergence" not in run_of([0.1], Gates())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_front_holds_exactly_what_no_other_file_beats(pairs: list[tuple[int, int]]) -> None:
    front = pareto_front([size for size, _ in pairs], [kl for _, kl in pairs])
    for (size, kl), marked in zip(pairs, front, strict=True):
        beaten = any(b <= size and d <= kl and (b < size or d < kl) for b, d in pairs)
        assert marked is not beaten


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.booleans())
def test_every_positive_value_gets_a_bar_inside_the_chart(values: list[float], log: bool) -> None:
    root = ET.fromstring(bars(values, [str(v) for v in values], "title <&>", log=log))
    drawn = [element for element in root if element.attrib.get("class") == "bar"]
    assert len(drawn) == sum(value > 0 for value in values)
    for bar in drawn:
        assert float(bar.attrib["y"]) >= 9.9
        assert float(bar.attrib["height"]) <= 220


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6), st.booleans())
def test_ticks_lie_on_the_axis_and_are_few(low: float, factor: float, log: bool) -> None:
    axis = Axis(low, low * factor, 0, 100, log)
    ticks = axis.ticks()
    assert len(ticks) <= 16
    for tick in ticks:
        assert -0.1 <= axis.at(tick) <= 100.1


def test_lines_and_scatters_are_well_formed_even_with_one_point() -> None:
    for svg in (line([(0.0, 1.0)], "t"), line([], "t"), scatter([Point(1, 1e-3, "<a>", marked=True)], "t")):
        ET.fromstring(svg)


@pytest.mark.parametrize("count", [1, 40])
def test_block_numbers_stand_under_their_first_tensor(count: int) -> None:
    from edgepack.edge.fidelity.report.page import _block_ticks

    names = ["token_embd.weight", *[f"blk.{block}.{kind}" for block in range(count) for kind in "ab"]]
    ticks = _block_ticks(names)
    assert len(ticks) <= 20
    assert all(names[index] == f"blk.{block}.a" for index, block in ticks.items())
