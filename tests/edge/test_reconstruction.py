"""Bars on the weights: what they judge, and that notes of a file's making are no difference."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgepack.cli import execute as run
from edgepack.edge.fidelity.findings import metadata_differences
from edgepack.edge.fidelity.gates import Gates
from edgepack.edge.fidelity.reconstruction import reconstruction_gates, reconstruction_of
from edgepack.edge.fidelity.run import FileFindings, WeightError
from edgepack.errors import CheckFailedError, UsageError
from edgepack.gguf.types import f32, string

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

WEIGHTS = (
    WeightError("blk.0.a.weight", "Q4_K", 0.10, suspect=False),
    WeightError("blk.0.b.weight", "Q4_K", 0.20, suspect=False),
    WeightError("blk.0.norm.weight", "F32", 0.9, suspect=True, is_matrix=False),
)


def test_vectors_do_not_count_and_bars_are_exclusive() -> None:
    findings = FileFindings(WEIGHTS, ())
    found = reconstruction_of(findings)
    assert (found.tensors, found.mean, found.largest, found.largest_name) == (
        2,
        0.15000000000000002,
        0.2,
        "blk.0.b.weight",
    )
    verdicts = [
        gate.passed for gate in reconstruction_gates(findings, Gates(max_mean_error=0.16, max_tensor_error=0.2))
    ]
    assert verdicts == [True, False]
    assert not reconstruction_gates(findings, Gates())


def test_a_bar_is_not_cleared_where_nothing_was_compared() -> None:
    assert [gate.passed for gate in reconstruction_gates(None, Gates(max_mean_error=9.0))] == [False]


def test_notes_of_the_making_are_no_difference() -> None:
    notes = {
        "edgepack.recipe": string("[[pass]]"), "edgepack.pass.1.kept": f32(0.5), "edgepack.wire.scale": f32(1),
        "edgepack.certificate": string("{}"),
    }  # fmt: skip
    assert metadata_differences({}, notes) == []
    assert metadata_differences({}, {"edgepack.embedding.prompt.query": string("q: ")}) != []


def test_export_exits_with_1_when_weights_are_too_far(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "t.txt"
    text.write_text("It was a dark night, and nobody came to the door of the old house. " * 40)
    made = ["export", str(books), "--text", str(text), "--chunks", "1", "--json", "--max-mean-error"]
    out = str(tmp_path / "o.gguf")
    assert run([*made, "0.15", "--target", "gguf-q2k", "-o", out]) == CheckFailedError.exit_code
    told = json.loads(capsys.readouterr().out)["validation"]
    assert not told["passed"]
    assert 0.15 < told["reconstruction"]["mean"] < 0.5
    assert run([*made, "0.15", "--target", "gguf-q8", "--force", "-o", out]) == 0
    capsys.readouterr()
    assert run([*made, "0.15", "--max-size", "9MB", "-o", out]) == UsageError.exit_code
