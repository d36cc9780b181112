"""Registers have full period and give the matrices that the paper's small check asks for."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.quant.codecs.seedlm import lfsr


def test_the_small_check() -> None:
    """K = 3, taps {0, 1}, seed 4, C = 4, P = 2, before normalisation."""
    matrix = lfsr.matrices(3, 4, 2)[4 - 1]
    assert (matrix * 3 + 4).tolist() == [[2, 5], [6, 7], [3, 1], [4, 2]]


@pytest.mark.parametrize("bits", sorted(lfsr.TAPS))
def test_every_register_visits_every_state_once(bits: int) -> None:
    assert np.array_equal(np.sort(lfsr.cycle(bits)), np.arange(1, 1 << bits))
    assert lfsr.cycle(bits)[-1] == 1


def test_matrices_hold_the_states_after_the_seed() -> None:
    matrices = lfsr.matrices(16, 8, 3)
    for seed in (1, 2, 0x8000, 0xFFFF, 12345):
        state, expected = seed, []
        for _ in range(24):
            feedback = (state ^ state >> 1 ^ state >> 3 ^ state >> 12) & 1
            state = state >> 1 | feedback << 15
            expected.append((state - 2**15) / (2**15 - 1))
        assert np.allclose(matrices[seed - 1].reshape(-1), expected, rtol=0, atol=1e-7)


def test_normalised_values_lie_between_minus_one_and_one() -> None:
    values = lfsr.normalised_cycle(16, 0)
    assert values.min() >= -1
    assert values.max() == 1
