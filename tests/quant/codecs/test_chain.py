"""A chain adds its stages up and says what each one gave; what does harm can be left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgepack.errors import CodecError
from edgepack.quant.codecs import codec
from edgepack.quant.codecs.chain import encode_chain, encode_pieces, open_chain
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

    def encode(self, weight, statistics=None):  # type: ignore[no-untyped-def]
        return super().encode(-weight)


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


@pytest.mark.parametrize("shape", [(1, 1), (7, 37), (300, 64), (129, 65)])
def test_coding_by_pieces_gives_the_bytes_of_coding_at_once(shape: tuple[int, int], monkeypatch: Any) -> None:
    rows = _Rows(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    whole = encode_chain(rows.array, [NF4()])
    monkeypatch.setattr(codec, "CHUNK_WEIGHTS", 500)
    found = encode_pieces(rows, NF4())
    assert rows.most <= max(1, 500 // shape[1])
    assert found.stages[0].parameters == whole.stages[0].parameters
    for key, component in whole.stages[0].components.items():
        assert np.array_equal(found.stages[0].components[key], component)
    assert found.squared_error == pytest.approx(whole.squared_error, rel=1e-6)
    assert found.error == pytest.approx(whole.error, rel=1e-6)
