"""The ladder keeps the smallest file that passes, and refuses what is hopeless on little text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from references.scorers_of_arrays import TableScorer

from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.validate import LOOKS, Gates, validate
from edgepack.errors import CheckFailedError
from edgepack.pipeline.fidelity import ScoringOptions
from edgepack.pipeline.ladder import climb, hopeless, rungs

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "".join(chr(97 + (i * i) % 26) for i in range(9000))
QUICK = ScoringOptions(ctx=64, max_chunks=60)


def test_rungs_are_sorted_by_their_exact_bytes(books: Path) -> None:
    found = rungs(books)
    assert [size for _target, size in found] == sorted(size for _target, size in found)
    assert found[0][0] == "gguf-q2k"
    assert found[-1][0] == "gguf-f32"


def test_the_smallest_that_passes_is_kept_and_the_others_are_gone(books: Path, tmp_path: Path, eval_text: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text(eval_text[:12_000], encoding="utf-8")
    targets = rungs(books, ("q2_k", "q4_k_m", "q8_0"))
    told: list[str] = []
    ladder = climb(books, targets, Gates(min_agreement=0.85), text, QUICK, tmp_path, tell=told.append)
    assert [(rung.target, rung.passed) for rung in ladder.tried] == [("gguf-q2k", False), ("gguf-q4km", True)]
    assert ladder.path == tmp_path / "gguf-q4km.gguf"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gguf-q4km.gguf", "text.txt"]
    assert [line.split(":")[0] for line in told] == ["failed gguf-q2k", "passed gguf-q4km"]
    with pytest.raises(CheckFailedError, match="no type of file clears the gates; .*gguf-q2k"):
        climb(books, targets[:1], Gates(min_agreement=0.85), text, QUICK, tmp_path)
    assert not (tmp_path / "gguf-q2k.gguf").exists()


def test_a_hopeless_candidate_is_scored_no_further_than_a_look() -> None:
    gates = Gates(min_agreement=0.95)
    (found,) = validate(
        TableScorer(), [TableScorer(noise=1.0)], TEXT, Chunking(64), hopeless=lambda so_far: hopeless(so_far, gates)
    )
    assert found.chunks == LOOKS[0]
    (found,) = validate(
        TableScorer(), [TableScorer()], TEXT, Chunking(64), hopeless=lambda so_far: hopeless(so_far, gates)
    )
    assert found.chunks == 9001 // 64


def test_one_hopeless_candidate_does_not_stop_another() -> None:
    found = validate(
        TableScorer(), [TableScorer(noise=1.0), TableScorer()], TEXT, Chunking(64),
        hopeless=lambda so_far: hopeless(so_far, Gates(max_kl=0.01)),
    )  # fmt: skip
    assert [result.chunks for result in found] == [9001 // 64] * 2
