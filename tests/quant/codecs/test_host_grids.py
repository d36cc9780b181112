"""Host grids, held against ggml's own dequantiser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import CodecError, UsageError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows, valid_rows
from edgepack.quant.codecs.ggml.host_grids import HOST_OF_TYPE, HOSTS, encode_host, find_host


def case(name: str, seed: int, rows: int = 5, columns: int = 512):
    host, random = HOSTS[name], np.random.default_rng(seed)
    steps = np.exp(random.uniform(np.log(7e-5), np.log(400), rows)).astype(np.float16)
    quants = random.integers(host.lowest, host.highest + 1, (rows, columns))
    quants[0, :2] = host.lowest, host.highest
    shape = (rows, columns // host.group)
    if host.grouped:
        return host, steps, quants, random.integers(1, host.max_multiple + 1, shape)
    short = (steps.view(np.uint16) & 0xFFF0).view(np.float16).astype(np.float32)  # of seven significant bits
    return host, short / 8, quants, random.integers(8, 16, shape) << random.integers(0, 5, shape)


@pytest.mark.parametrize("name", HOSTS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_ggml_reads_back_the_grid_bit_for_bit(name: str, seed: int) -> None:
    host, steps, quants, multiples = case(name, seed)
    blocks = encode_host(host, steps, quants, multiples)
    assert valid_rows(host.kind, blocks)
    # In float64 the product of step, multiple and integer is exact.
    expected = steps.astype(np.float64)[:, None] * np.repeat(multiples, host.group, axis=1) * quants
    assert np.array_equal(dequantize_rows(host.kind, blocks, *quants.shape), expected)


@pytest.mark.parametrize("kind", [GGMLType.Q5_0, GGMLType.Q5_1, GGMLType.F16])
def test_the_fall_backs_for_odd_rows_are_exact_too(kind: GGMLType) -> None:
    host, random = HOST_OF_TYPE[kind], np.random.default_rng(5)
    steps = (np.array([9, 15, 8, 1, 11]) * 2.0 ** np.array([-13, -9, -8, 0, 3])).astype(np.float16)
    quants = random.integers(host.lowest, host.highest + 1, (5, 96))
    values = dequantize_rows(kind, encode_host(host, steps, quants), *quants.shape)
    assert np.array_equal(values, steps.astype(np.float64)[:, None] * quants)


def test_a_step_of_many_bits_is_refused_where_the_product_would_be_rounded() -> None:
    steps = np.array([1 + 1 / 1024], np.float16)
    with pytest.raises(CodecError, match="too many significant bits"):
        encode_host(HOST_OF_TYPE[GGMLType.F16], steps, np.full((1, 3), 127))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("beyond", [-1, 1])
def test_an_integer_beyond_the_host_is_refused(name: str, beyond: int) -> None:
    host, steps, quants, multiples = case(name, 1)
    quants[2, 3] = host.highest + 1 if beyond > 0 else host.lowest - 1
    with pytest.raises(CodecError, match="expected integers from"):
        encode_host(host, steps, quants, multiples)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("step", [0.0, 3e-6, -1.0, np.inf, np.nan])
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
    multiples[1, 0] = host.max_multiple + 1
    with pytest.raises(CodecError, match="expected multiples"):
        encode_host(host, steps, quants, multiples)


def test_hosts_are_found_in_both_spellings() -> None:
    assert find_host("Q8_0") is HOSTS["q8"]
    assert find_host("q5_K") is HOSTS["q5k"]
    with pytest.raises(UsageError, match="q8, q6k, q5k, q4k"):
        find_host("q3k")
