"""Host grids, held against ggml's own dequantiser."""

from __future__ import annotations

import numpy as np
import pytest
from edgepack.quant.codecs.ggml import dequantize_rows, valid_rows
from edgepack.quant.codecs.host_grids import HOSTS, encode_host, find_host
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import CodecError, UsageError


def case(name: str, seed: int, rows: int = 5, columns: int = 512):
    host, random = HOSTS[name], np.random.default_rng(seed)
    steps = np.exp(random.uniform(np.log(7e-5), np.log(400), rows)).astype(np.float16)
    quants = random.integers(host.lowest, host.highest + 1, (rows, columns))
    quants[0, :2] = host.lowest, host.highest
    return host, steps, quants, random.integers(1, host.max_multiple + 1, columns // host.group)


@pytest.mark.parametrize("name", HOSTS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_ggml_reads_back_the_grid_bit_for_bit(name: str, seed: int) -> None:
    host, steps, quants, multiples = case(name, seed)
    blocks = encode_host(host, steps, quants, multiples)
    assert valid_rows(host.kind, blocks)
    # In float64 the product of step, multiple and integer is exact.
    expected = steps.astype(np.float64)[:, None] * np.repeat(multiples, host.group) * quants
    assert np.array_equal(dequantize_rows(host.kind, blocks, *quants.shape), expected)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("beyond", [-1, 1])
def test_an_integer_beyond_the_host_is_refused(name: str, beyond: int) -> None:
    host, steps, quants, multiples = case(name, 1)
    quants[2, 3] = host.highest + 1 if beyond > 0 else host.lowest - 1
    with pytest.raises(CodecError, match="expected integers from"):
        encode_host(host, steps, quants, multiples)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("step", [0.0, 3e-5, -1.0, np.inf, np.nan])
def test_a_step_that_half_precision_cannot_hold_is_refused(name: str, step: float) -> None:
    host, steps, quants, multiples = case(name, 2)
    steps[1] = step
    with pytest.raises(CodecError, match="normal half-precision"):
        encode_host(host, steps, quants, multiples)


@pytest.mark.parametrize("name", HOSTS)
def test_rows_that_are_no_whole_blocks_and_odd_multiples_are_refused(name: str) -> None:
    host, steps, quants, multiples = case(name, 3)
    with pytest.raises(CodecError, match="not whole blocks"):
        encode_host(host, steps, quants[:, :500])
    multiples[0] = host.max_multiple + 1
    with pytest.raises(CodecError, match="expected multiples"):
        encode_host(host, steps, quants, multiples)


def test_hosts_are_found_in_both_spellings() -> None:
    assert find_host("Q8_0") is HOSTS["q8"]
    assert find_host("q5_K") is HOSTS["q5k"]
    with pytest.raises(UsageError, match="q8, q6k, q5k, q4k"):
        find_host("q3k")
