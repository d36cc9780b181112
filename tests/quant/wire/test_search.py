"""The search of a scale on curves as archives have them, and the prediction against entropies of real integers."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edgepack.packaging.coding.trellis_symbols import as_indices  # noqa: E402
from edgepack.quant.feedback import feedback_factor  # noqa: E402
from edgepack.quant.wire.factor import SweepFactor  # noqa: E402
from edgepack.quant.wire.grid import Lattice  # noqa: E402
from edgepack.quant.wire.lanes import Lanes, TrellisRounding  # noqa: E402
from edgepack.quant.wire.prediction import Spread  # noqa: E402
from edgepack.quant.wire.rates import RateModel  # noqa: E402
from edgepack.quant.wire.search import TOLERANCE, Search  # noqa: E402
from edgepack.quant.wire.sweep import sweep  # noqa: E402
from edgepack.trellis import TrellisCode  # noqa: E402

WEIGHTS = 5_000_000
LEVELS = [-18 + 0.5 * step for step in range(21)]


def archive_bytes(level: float, bias: float, fixed: float, noise: float) -> int:
    """A bit a weight and doubling at high rates, flat where weights become zeros; a little uneven."""
    bits = math.log2(1 + 2.0 ** (-9 - level)) + 0.3
    return int(bias * WEIGHTS * bits / 8 + fixed + noise * WEIGHTS * math.sin(1e3 * level))


@settings(max_examples=200, deadline=None)
@given(
    at=st.floats(-16, -10),
    bias=st.floats(0.85, 1.2),
    fixed=st.floats(0, 100_000),
    tilt=st.floats(-0.03, 0.03),
)
def test_three_roundings_hit_a_size_and_never_exceed_it(at: float, bias: float, fixed: float, tilt: float) -> None:
    curve = tuple((level, archive_bytes(level, 1, 0, 0) * (1 + tilt * (level + 13))) for level in LEVELS)
    wanted = archive_bytes(at, bias, fixed, 0)
    search = Search(wanted, -18, -8, curve)
    while not search.hit:
        assert len(search.tried) < 3
        level = search.next_level()
        search = search.after(level, archive_bytes(level, bias, fixed, 1e-5))
    assert search.best is not None
    assert wanted * (1 - TOLERANCE) <= search.best.bytes <= wanted


def test_a_size_beyond_both_ends_is_found_out() -> None:
    curve = tuple((level, float(archive_bytes(level, 1, 0, 0))) for level in LEVELS)
    least, most = archive_bytes(-8, 1, 0, 0), archive_bytes(-18, 1, 0, 0)
    small = Search(least // 2, -18, -8, curve)
    small = small.after(small.next_level(), archive_bytes(small.next_level(), 1, 0, 0))
    assert small.hopeless
    assert small.best is None
    large = Search(most * 2, -18, -8, curve)
    large = large.after(large.next_level(), archive_bytes(large.next_level(), 1, 0, 0))
    assert large.hit
    assert not large.hopeless


def test_a_host_that_is_full_ends_the_search_at_what_gave_most() -> None:
    search = Search(9_000_000, -18, -8, ((-18.0, 8e6), (-8.0, 1e6)))
    search = search.after(-17, 4_600_000)
    assert not search.saturated
    search = search.after(-17.5, 4_500_000)
    assert search.hit
    assert search.best is not None
    assert search.best.level == -17


def test_levels_too_fine_for_the_host_are_not_tried_again() -> None:
    search = Search(9_000_000, -18, -8, ((-18.0, 8e6), (-8.0, 1e6))).unfit(-18)
    assert search.low == -17
    assert search.next_level() >= -17


def test_a_guess_stays_between_what_was_too_much_and_too_little() -> None:
    search = Search(1_000_000, -18, -8, ((-18.0, 8e6), (-8.0, 1e5))).after(-12, 1_500_000).after(-11, 900_000)
    assert -12 < search.next_level() < -11


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.5])
def test_predicted_bits_are_those_of_the_integers(scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    spread = torch.exp(torch.randn(1, 64, generator=generator) * 0.5)
    weights = torch.randn(256, 64, generator=generator) * spread
    inputs = torch.randn(400, 64, generator=generator)
    factor = SweepFactor.of(feedback_factor(inputs.T @ inputs / 400))
    ones = torch.ones(64, dtype=torch.int32)
    steps = torch.full((256,), scale * float(np.exp(np.log(factor.diagonal).mean())))
    lattice = Lattice(steps, torch.ones(256, 2, dtype=torch.int32), ones, ones * 4000, 1)
    code, rates = TrellisCode(8, 128), RateModel.of(weights, factor, lattice)
    lanes = Lanes.cut([256], 128, torch.zeros(256, dtype=torch.bool))
    swept = sweep(weights, factor, lattice, paths=TrellisRounding(code, lanes, torch.ones(256), rates))
    found = as_indices(swept.quants.astype(np.int64), np.ones(64, np.int64), code)
    assert found is not None
    bits = 0.0
    for column in range(64):  # columns have scales of their own, as the archive's classes have
        _, counts = np.unique(found.indices[:, column], return_counts=True)
        bits -= float((counts * np.log2(counts / 256)).sum())
    predicted = Spread.of(weights, torch.ones(256, dtype=torch.float64), factor, weights.numel()).bits(scale)
    assert predicted == pytest.approx(bits, rel=0.15)


@pytest.mark.parametrize(
    ("share", "middle", "slope"), [(0.99, -5.86, 22_000), (0.993, -5.84, 23_800), (0.982, -5.91, 18_200)]
)
def test_a_curve_that_is_flat_before_it_falls_does_not_hold_the_search_at_its_flat_end(
    share: float, middle: float, slope: float
) -> None:
    """Below some rate nothing changes: guesses along the curve crept away from there, twelve roundings for one size."""

    def size(level: float, middle: float = middle, slope: float = slope) -> int:
        return int(301_425 - slope * math.log2(1 + 2.0 ** (2 * (level - middle))))

    levels = [-10 + 10 * step / 24 for step in range(25)]
    wanted = size(0) + int(share * (size(-10) - size(0)))
    search = Search(wanted, -10, 0, tuple((level, float(size(level, -4, 20_000))) for level in levels))
    while not search.hit:
        assert len(search.tried) < 5
        level = search.next_level()
        search = search.after(level, size(level))
    assert search.best is not None
    assert wanted * (1 - TOLERANCE) <= search.best.bytes <= wanted
