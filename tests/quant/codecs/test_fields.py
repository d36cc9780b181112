"""Fields of ggml's blocks against ggml's own decoder, and back to the same bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import CodecError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows
from edgepack.quant.codecs.ggml.fields import FIELD_TYPES, Fields, block_format, read_fields, write_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPES = sorted(FIELD_TYPES)


def random_rows(kind: GGMLType, seed: int, rows: int = 3, blocks: int = 2) -> NDArray[Any]:
    """Random bits with steps that are numbers."""
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (rows * blocks, kind.block_bytes), dtype=np.uint8)
    form = block_format(kind)
    for at in (form.step_at, form.minimum_at):
        if at is not None:
            halves = generator.uniform(-0.5, 0.5, rows * blocks).astype("<f2")
            raw[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, -1)


def weights(kind: GGMLType, fields: Fields) -> NDArray[np.float32]:
    """What the module says that a value is."""
    form = block_format(kind)
    scale = fields.step.astype(np.float32)[:, None] * (1 if fields.codes is None else fields.codes)
    values = np.repeat(scale, kind.block_size // scale.shape[1], axis=1) * form.levels[fields.integers]
    if fields.minimum is not None:
        codes = 1 if fields.minimum_codes is None else fields.minimum_codes
        offset = form.minimum_sign * fields.minimum.astype(np.float32)[:, None] * codes
        values = values + np.repeat(offset, kind.block_size // offset.shape[1], axis=1)
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_fields_say_what_ggml_reads_and_give_the_same_bytes_back(kind: GGMLType, seed: int) -> None:
    rows = random_rows(kind, seed)
    fields = read_fields(kind, rows)
    expected = dequantize_rows(kind, rows.reshape(-1), len(rows), 2 * kind.block_size)
    np.testing.assert_allclose(weights(kind, fields).reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(write_fields(kind, rows, fields), rows)
    np.testing.assert_array_equal(write_fields(kind, np.zeros_like(rows), fields), rows)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_each_field_is_written_without_touching_the_others(kind: GGMLType) -> None:
    rows, other = random_rows(kind, 1), read_fields(kind, random_rows(kind, 2))
    fields = read_fields(kind, rows)
    for name in ("step", "minimum", "codes", "minimum_codes", "integers"):
        changed = replace(fields, **{name: getattr(other, name)})
        found = read_fields(kind, write_fields(kind, rows, changed))
        for each in ("step", "minimum", "codes", "minimum_codes", "integers"):
            np.testing.assert_array_equal(getattr(found, each), getattr(changed, each), err_msg=f"{name}: {each}")


def test_numbers_that_a_field_cannot_hold_are_refused() -> None:
    kind = GGMLType.Q3_K
    rows = random_rows(kind, 0)
    fields = read_fields(kind, rows)
    assert fields.codes is not None
    with pytest.raises(CodecError, match="codes from -32 to 31, got"):
        write_fields(kind, rows, replace(fields, codes=fields.codes + np.int16(64)))
    with pytest.raises(CodecError, match="integers from 0 to 7, got"):
        write_fields(kind, rows, replace(fields, integers=fields.integers + np.uint8(8)))
    with pytest.raises(CodecError, match="finite steps"):
        write_fields(kind, rows, replace(fields, step=np.full_like(fields.step, np.inf)))


def test_rows_that_are_no_blocks_and_types_without_fields_are_refused() -> None:
    with pytest.raises(CodecError, match="whole blocks of 34 bytes"):
        read_fields(GGMLType.Q8_0, np.zeros((2, 33), np.uint8))
    with pytest.raises(CodecError, match="not steps and integers"):
        read_fields(GGMLType.IQ2_S, np.zeros((1, 82), np.uint8))
