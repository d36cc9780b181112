"""What work with a text will take is told by runs of one and two blocks, of which nothing is left."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shaky_backend import ShakyBackend

import edgepack
from edgepack.pipeline.cluster import opening
from edgepack.pipeline.cluster.board import Board
from edgepack.pipeline.cluster.crew import ClusterCrew
from edgepack.pipeline.cluster.sampled import extrapolated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNT = st.floats(0, 1e6)


@given(COUNT, COUNT, COUNT, COUNT, st.integers(1, 200), st.floats(1, 64))
def test_what_grows_with_blocks_and_sequences_is_found_exactly(
    once: float, block: float, sequence: float, both: float, blocks: int, times: float
) -> None:
    def taken(count: float, many: float) -> float:
        return once + block * count + sequence * many + both * count * many

    corners = {(count, many): taken(count, many) for count in (1, 2) for many in (1, 2)}
    assert extrapolated(corners, blocks, times) == pytest.approx(taken(blocks, times), rel=1e-6, abs=1e-3)


@given(st.tuples(COUNT, COUNT, COUNT, COUNT), st.integers(1, 200), st.floats(1, 64))
def test_noise_makes_nothing_negative(noise: tuple[float, float, float, float], blocks: int, times: float) -> None:
    corners = dict(zip(((1, 1), (1, 2), (2, 1), (2, 2)), noise, strict=True))
    assert extrapolated(corners, blocks, times) >= 0


def test_a_dry_run_with_gptq_predicts_and_leaves_nothing(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ShakyBackend(2, 1)

    @contextmanager
    def opened(_job: object) -> Iterator[ClusterCrew]:
        yield ClusterCrew(backend, Board(lambda _line: None))

    monkeypatch.setattr(opening, "opened_crew", opened)
    (tmp_path / "text.txt").write_text("Once upon a time there was a little cat. " * 300)
    (tmp_path / "gptq.toml").write_text(
        '[calibration]\nsequences = 16\nlength = 32\n[[pass]]\nname = "gptq"\n', encoding="utf-8"
    )
    given: Any = {"recipe": tmp_path / "gptq.toml", "calibration": tmp_path / "text.txt", "cluster": "auto"}
    before = sorted(tmp_path.iterdir())
    result = edgepack.export(stories, "gguf-q4_0", output=tmp_path / "m.gguf", dry_run=True, refine=False, **given)
    assert sorted(tmp_path.iterdir()) == before
    assert backend.asked
    assert result.cluster is not None
    predicted: Any = result.cluster["predicted"]
    assert predicted["seconds"] > 0
    assert predicted["sent_bytes"] > 0
    assert predicted["read_bytes"] == result.outline.source_bytes
