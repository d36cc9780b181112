"""What work with a text will take is told by runs of one and two blocks, of which nothing is left."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from shaky_backend import ShakyBackend

import edgepack
from edgepack.edge.llama.importance_collect import collect_importance
from edgepack.errors import UsageError
from edgepack.gguf.reader import read_header
from edgepack.pipeline.cluster import opening, sampled
from edgepack.pipeline.cluster.board import Board
from edgepack.pipeline.cluster.crew import ClusterCrew
from edgepack.pipeline.cluster.sampled import extrapolated
from edgepack.pipeline.request import ExportRequest

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


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ShakyBackend:
    """What `--cluster` connects to."""
    found = ShakyBackend(2, 1)

    @contextmanager
    def opened(_job: object) -> Iterator[ClusterCrew]:
        yield ClusterCrew(found, Board(lambda _line: None))

    monkeypatch.setattr(opening, "opened_crew", opened)
    return found


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a little cat. " * 300)
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Of the last block, which no sample has: it has to be merged before a model of the first ones is made."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.model.layers.4.self_attn.q_proj"
    factors = {"A": (2, 64), "B": (64, 2)}
    save_file(
        {f"{prefix}.lora_{part}.weight": np.full(shape, 0.01, np.float32) for part, shape in factors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.mark.parametrize("mode", ["merge", "separate"])
def test_an_edge_target_with_text_gates_and_adapter_is_foretold_and_nothing_is_left(
    mode: str, stories: Path, tmp_path: Path, backend: ShakyBackend, text: Path, adapter: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    result = edgepack.export(
        stories, "edge-nf4", output=tmp_path / "m.gguf", dry_run=True, calibration=text, sequences=8, length=32,
        adapter=adapter, adapter_mode=mode, min_agreement=0.5, text=text, cluster="auto",
    )  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before
    assert backend.asked
    assert not result.outline.is_exact, "codecs' choices stand on statistics that a dry run does not collect"
    assert result.cluster is not None
    predicted: Any = result.cluster["predicted"]
    assert predicted["seconds"] > 0
    assert predicted["sent_bytes"] > 0


def test_a_calibrated_edge_target_s_dry_run_is_refused_without_a_cluster(stories: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="--calibration: collecting is work"):
        edgepack.export(stories, "edge-nf4", dry_run=True, calibration=text)


def test_a_target_that_no_text_goes_through_is_told_by_its_blocks_alone(
    stories: Path, tmp_path: Path, backend: ShakyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def run(*given: Any) -> sampled._Taken:
        made.append(given[4])
        return sampled._Taken(float(given[4]), 0.0, 10.0 * given[4], 1)

    monkeypatch.setattr(sampled, "_run", run)
    result = edgepack.export(stories, "edge-nf4", output=tmp_path / "m.gguf", dry_run=True, cluster="auto")
    assert made == [1, 2], "a run of each number of blocks"
    assert result.cluster is not None
    predicted: Any = result.cluster["predicted"]
    assert predicted["seconds"] == 5 / backend.size().processors
    assert predicted["sent_bytes"] == 50


def test_gates_are_no_work_of_the_cluster_and_a_search_for_one_is_told_as_a_search_for_a_size(adapter: Path) -> None:
    plain = ExportRequest("m", "edge-nf4", adapter=adapter, min_agreement=0.9, validate=True, text="t", chunks=3)
    assert sampled._making(plain) == ExportRequest("m", "edge-nf4")
    assert sampled._making(ExportRequest("m", "wire", max_kl=0.1)).bits == 4.0
    assert sampled._making(ExportRequest("m", "wire", bits=2.5)).bits == 2.5


def test_a_dry_run_with_gptq_predicts_and_leaves_nothing(
    stories: Path, tmp_path: Path, backend: ShakyBackend, text: Path
) -> None:
    (tmp_path / "gptq.toml").write_text(
        '[calibration]\nsequences = 16\nlength = 32\n[[pass]]\nname = "gptq"\n', encoding="utf-8"
    )
    given: Any = {"recipe": tmp_path / "gptq.toml", "calibration": text, "cluster": "auto"}
    before = sorted(tmp_path.iterdir())
    result = edgepack.export(stories, "gguf-q4_0", output=tmp_path / "m.gguf", dry_run=True, refine=False, **given)
    assert sorted(tmp_path.iterdir()) == before
    assert backend.asked
    assert result.cluster is not None
    predicted: Any = result.cluster["predicted"]
    assert predicted["seconds"] > 0
    assert predicted["sent_bytes"] > 0
    assert predicted["read_bytes"] == result.outline.source_bytes


def test_importance_alone_is_foretold_from_the_first_blocks_and_the_file_s_bytes_are_exact(
    stories: Path, tmp_path: Path, backend: ShakyBackend, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def collecting(gguf: Path, *given: Any, **named: Any) -> Any:
        ran.append(read_header(gguf).get("llama.block_count"))
        return collect_importance(gguf, *given, **named)

    monkeypatch.setattr("edgepack.pipeline.importance.collect_importance", collecting)
    given: Any = {"calibration": text, "refine": False, "sequences": 8, "length": 32}
    before = sorted(tmp_path.iterdir())
    result = edgepack.export(
        stories, "gguf-q4_0", output=tmp_path / "m.gguf", dry_run=True, cluster="auto", **given
    )  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before
    assert backend.asked
    assert ran == [1, 1, 2, 2], "the whole model is never run"
    assert result.cluster is not None
    predicted: Any = result.cluster["predicted"]
    assert predicted["seconds"] > 0
    assert predicted["sent_bytes"] > 0
    made = edgepack.export(stories, "gguf-q4_0", output=tmp_path / "m.gguf", threads=1, **given)
    assert made.output.stat().st_size == result.outline.bytes
    assert result.outline.is_exact


def test_a_text_that_cannot_be_read_is_refused_before_anything_is_asked(
    stories: Path, tmp_path: Path, backend: ShakyBackend
) -> None:
    with pytest.raises(UsageError, match="nowhere.txt"):
        edgepack.export(
            stories, "gguf-q4_0", output=tmp_path / "m.gguf", dry_run=True, cluster="auto", refine=False,
            calibration=tmp_path / "nowhere.txt",
        )  # fmt: skip
    assert not backend.asked
