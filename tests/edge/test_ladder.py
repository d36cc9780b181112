"""The ladder keeps the smallest file that passes, and refuses what is hopeless on little text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from references.scorers_of_arrays import TableScorer

from edgepack.edge.fidelity.gates import Gates
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.edge.fidelity.validate import LOOKS, validate
from edgepack.errors import CheckFailedError
from edgepack.export.mapped_model import open_model
from edgepack.export.rows import ArrayRows
from edgepack.pipeline.goals.judging import Judge, hopeless
from edgepack.pipeline.goals.ladder import climb
from edgepack.pipeline.makers.gguf import ladder, open_gguf
from edgepack.pipeline.request import ExportRequest
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "".join(chr(97 + (i * i) % 26) for i in range(9000))
QUICK = ScoringOptions(ctx=64, max_chunks=60)


def test_the_largest_target_is_the_float_type_that_loses_nothing(books: Path) -> None:
    maker = open_gguf(ExportRequest(books), None)
    sizes = [maker.outline(target).bytes for target in maker.ladder]
    assert sizes[0] == max(sizes)
    assert maker.ladder[0].name == "gguf-bf16"  # the bundled model is stored in it
    assert maker.ladder[-1].name == "gguf-q2k"
    wide = replace(open_model(books), tensors={"x": ArrayRows(np.ones((4, 32), np.float32), "f32")})
    assert [target.name for target in ladder(wide)][:2] == ["gguf-f32", "gguf-bf16"]


def test_the_smallest_that_passes_is_kept_and_the_others_are_gone(books: Path, tmp_path: Path, eval_text: str) -> None:
    text, scratch = tmp_path / "text.txt", tmp_path / "scratch"
    text.write_text(eval_text[:12_000], encoding="utf-8")
    scratch.mkdir()
    targets = [find_target(name) for name in ("q2_k", "q4_k_m", "q8_0")]
    maker = open_gguf(ExportRequest(books), None)
    told: list[str] = []
    with Judge(books, Gates(min_agreement=0.85), text, QUICK) as judge:
        tried, made = climb(maker, targets, judge, scratch, told.append)
        assert [(rung.target, rung.passed) for rung in tried] == [("gguf-q2k", False), ("gguf-q4km", True)]
        assert made.gguf == scratch / "gguf-q4km.gguf"
        assert [path.name for path in scratch.iterdir()] == ["gguf-q4km.gguf"]
        assert sorted(line.split(":")[0] for line in told) == ["failed gguf-q2k", "passed gguf-q4km"]
        with pytest.raises(CheckFailedError, match=r"no type of file clears the gates; .*gguf-q2k"):
            climb(maker, targets[:1], judge, scratch, told.append)
    assert not (scratch / "gguf-q2k.gguf").exists()


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
