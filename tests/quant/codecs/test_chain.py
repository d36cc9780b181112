"""A chain adds its stages up and says what each one gave; what does harm can be left out."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgepack.errors import CodecError
from edgepack.quant.codecs import codec
from edgepack.quant.codecs.chain import encode_chain, open_chain
from edgepack.quant.codecs.codec import NO_STATISTICS, Statistics, WholeMatrix
from edgepack.quant.codecs.nf4 import NF4
from edgepack.quant.codecs.targets import find_edge_target
from edgepack.quant.codecs.ternary import Ternary

WEIGHT = np.random.default_rng(9).standard_normal((24, 256)).astype(np.float32)


def test_the_reports_are_what_decoding_gives() -> None:
    result = encode_chain(WEIGHT, find_edge_target("vptq2+nf4+trajectory").codecs)
    total = np.zeros_like(WEIGHT)
    before = 1.0
    for stage, report in zip(result.stages, result.reports, strict=True):
        total += open_chain([stage]).rows(0, 24)
        error = ((WEIGHT - total) ** 2).sum() / (WEIGHT**2).sum()
        assert report.error == pytest.approx(error, rel=1e-4)
        assert report.error_before == pytest.approx(before, rel=1e-4)
        assert report.bits_per_weight == stage.bits_per_weight
        before = report.error
    assert np.allclose(open_chain(result.stages).rows(3, 9), total[3:9], atol=1e-6)
    assert result.nbytes == sum(stage.nbytes for stage in result.stages)


def test_a_stage_that_does_not_help_is_reported_and_with_skip_harmful_dropped() -> None:
    exact = np.sign(WEIGHT) * np.float32(0.5)
    kept = encode_chain(exact, (Ternary("tensor"), NF4()))
    assert [report.harmful for report in kept.reports] == [False, False]
    assert kept.error == 0
    # After NF4 what is left has a bound of its own: one ternary scale for all of it cannot make it much smaller.
    chain = (NF4(), Ternary("tensor"), Ternary("tensor"), Ternary("tensor"), Ternary("tensor"), Ternary("tensor"))
    plain, skipping = encode_chain(WEIGHT, chain), encode_chain(WEIGHT, chain, skip_harmful=True)
    assert skipping.error <= plain.error * 1.0001
    assert len(skipping.stages) == sum(report.kept for report in skipping.reports)


class _Harmful(Ternary):
    """Codes the opposite of what is left."""

    def encode_pieces(self, source, statistics=None):  # type: ignore[no-untyped-def]
        return super().encode_pieces(WholeMatrix(-source.read_rows(0, source.matrix_shape[0])))


def test_a_harmful_stage_is_named() -> None:
    kept = encode_chain(WEIGHT, (NF4(), _Harmful()))
    assert kept.reports[1].harmful
    assert kept.error > kept.reports[0].error
    dropped = encode_chain(WEIGHT, (NF4(), _Harmful()), skip_harmful=True)
    assert [stage.codec for stage in dropped.stages] == ["nf4"]
    assert not dropped.reports[1].kept
    assert dropped.error == dropped.reports[0].error


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(CodecError):
        encode_chain(WEIGHT, ())
    with pytest.raises(CodecError):
        open_chain([])


class _Rows:
    """A matrix that is only read by rows; remembers the most that were asked for at once."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.most = array, 0
        self.matrix_shape = array.shape

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        self.most = max(self.most, stop - start)
        return self.array[start:stop]


@pytest.mark.parametrize("shape", [(1, 1), (7, 37), (300, 64), (129, 65), (40, 300)])
@pytest.mark.parametrize(
    "target",
    ["nf4", "ternary", "ternary:scale=row", "ternary:scale=tensor", "ternary:scale=tensor,fit=least-squares",
     "ternary:fit=least-squares", "trajectory", "bezier4", "bezier:index_bits=3,segment=100", "nf4+ternary+bezier4",
     "seedlm4:register_bits=6", "seedlm3:register_bits=6+nf4"],
)  # fmt: skip
@pytest.mark.parametrize("known", [False, True])
def test_coding_by_pieces_gives_the_bytes_of_coding_at_once(
    shape: tuple[int, int], target: str, known: bool, monkeypatch: Any
) -> None:
    rng = np.random.default_rng(0)
    rows = _Rows(rng.standard_normal(shape).astype(np.float32) * np.exp2(rng.integers(-12, 12, (shape[0], 1))))
    rows.array = rows.array.astype(np.float32)
    statistics = Statistics(rng.uniform(0.5, 2, shape[1])) if known else NO_STATISTICS
    codecs = find_edge_target(target).codecs
    whole = encode_chain(rows.array, codecs, statistics)
    monkeypatch.setattr(codec, "CHUNK_WEIGHTS", 500)
    rows.most = 0
    found = encode_chain(rows, codecs, statistics)
    assert rows.most <= max(1, 500 // shape[1])
    for one, other in zip(found.stages, whole.stages, strict=True):
        assert one.parameters == pytest.approx(other.parameters)
        for key, component in other.components.items():
            assert np.array_equal(one.components[key], component), key
    assert found.squared_error == pytest.approx(whole.squared_error, rel=1e-6)
    assert found.error == pytest.approx(whole.error, rel=1e-6)


@dataclass
class _MadeRows:
    """Normal numbers that are made when they are read."""

    matrix_shape: tuple[int, int]

    def read_rows(self, start: int, stop: int) -> Any:
        return np.random.default_rng(start).standard_normal((stop - start, self.matrix_shape[1]), dtype=np.float32)


def _peak_and_stored(target: str, rows: int) -> tuple[int, int]:
    """Bytes that numpy takes at most while a matrix is coded, and those that are stored of it."""
    coder: Any = find_edge_target(target).codecs[0]
    tracemalloc.start()
    try:
        encoded = coder.encode_pieces(_MadeRows((rows, 256)))
        return tracemalloc.get_traced_memory()[1], encoded.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("target", ["nf4", "ternary", "trajectory", "bezier4"])
def test_memory_of_coding_grows_by_what_is_stored_alone(target: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(codec, "CHUNK_WEIGHTS", 1 << 14)
    _peak_and_stored(target, 256)  # fills the caches
    peak, stored = _peak_and_stored(target, 2048)
    larger_peak, larger_stored = _peak_and_stored(target, 8192)
    assert larger_peak - peak <= 1.2 * (larger_stored - stored)
