"""What an expression of rows did is undone: the checkpoint's tensors come back, whatever was done to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UnsupportedModelError
from edgepack.export.arranged_rows import (
    JoinedRows,
    PermutedRows,
    PickedRows,
    ReshapedRows,
    ScaledRows,
    ShiftedRows,
    SlicedExperts,
    SlicedRows,
    TransposedRows,
)
from edgepack.export.backwards.undone import undone
from edgepack.export.expert_rows import TransposedExperts
from edgepack.export.row_functions import (
    MappedRows,
    PaddedRows,
    PermutedColumns,
    PickedColumns,
    RefoldedRows,
    RowScaledRows,
    decay_rates,
)
from edgepack.export.rows import ArrayRows, SourceRows, row_count
from edgepack.export.stored_blocks import AlternateRows
from edgepack.model import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.export.rows import Rows


class Arrays:
    def __init__(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        self.arrays = arrays
        self.specs = {name: TensorSpec(name, array.shape, "f32") for name, array in arrays.items()}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        array = self.arrays[name]
        return np.array(array.reshape(-1, array.shape[-1])[start:stop])


def whole(rows: Rows) -> NDArray[np.float32]:
    count = row_count(rows.shape) if len(rows.shape) > 1 else 1
    pieces = [rows.read(start, min(start + 3, count)) for start in range(0, count, 3)]
    return np.concatenate(pieces).reshape(rows.shape)


def held(expressions: Mapping[str, Rows]) -> dict[str, Rows]:
    """What a file holds of the expressions."""
    return {name: ArrayRows(whole(rows)) for name, rows in expressions.items()}


def positive(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float32)


STEPS = {
    "permuted": lambda rows, rng: PermutedRows(rows, rng.permutation(rows.shape[0])),
    "columns": lambda rows, rng: PermutedColumns(rows, rng.permutation(rows.shape[1])),
    "shifted": lambda rows, _rng: ShiftedRows(rows, 1.0),
    "scaled": lambda rows, _rng: ScaledRows(rows, 3.0),
    "row-scaled": lambda rows, rng: RowScaledRows(rows, rng.uniform(0.5, 2, rows.shape[0]).astype(np.float32)),
    "transposed": lambda rows, _rng: TransposedRows(rows),
    "decay": lambda rows, _rng: decay_rates(rows, None),
    "folded": lambda rows, _rng: RefoldedRows(rows, (rows.shape[0] * 2, rows.shape[1] // 2)),
}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=5), st.integers(0, 2**16))
def test_any_chain_of_steps_is_undone(steps, seed):
    rng = np.random.default_rng(seed)
    original = positive((6, 8), seed)
    rows: Rows = SourceRows(Arrays({"w": original}), "w")
    for step in steps:
        if not (step == "folded" and rows.shape[1] % 2) and not (
            step == "decay" and "decay" in steps[: steps.index(step)]
        ):
            rows = STEPS[step](rows, rng) if steps.count("decay") < 2 or step != "decay" else rows
    found = undone({"t": rows}, held({"t": rows}))
    assert not found.incomplete
    assert np.allclose(whole(found.tensors["w"]), original, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 5), st.integers(0, 2**16))
def test_parts_of_a_tensor_in_several_others_are_put_together(cut, seed):
    original = positive((6, 4), seed)
    rows = SourceRows(Arrays({"w": original}), "w")
    order = np.random.default_rng(seed).permutation(6)
    turned = PermutedRows(rows, order)
    expressions = {"a": SlicedRows(turned, 0, cut), "b": ShiftedRows(SlicedRows(turned, cut, 6), 1.0)}
    found = undone(expressions, held(expressions))
    assert np.allclose(whole(found.tensors["w"]), original, atol=1e-6)


def test_halves_of_transposed_experts_come_back_as_they_were_published():
    original = positive((3, 4, 10))
    rows = TransposedExperts(SourceRows(Arrays({"w": original}), "w"))
    expressions = {"gate": SlicedExperts(rows, 0, 5), "up": SlicedExperts(rows, 5, 10)}
    found = undone(expressions, held(expressions))
    assert np.array_equal(whole(found.tensors["w"]), original)


def test_rows_and_columns_in_turn_come_back():
    original, bias = positive((2, 6, 4)), positive((2, 6), 1)
    source = Arrays({"w": original, "b": bias})
    expressions = {
        "w0": AlternateRows(SourceRows(source, "w"), 0),
        "w1": AlternateRows(SourceRows(source, "w"), 1),
        "b0": PickedColumns(SourceRows(source, "b"), np.arange(0, 6, 2)),
        "b1": PickedColumns(SourceRows(source, "b"), np.arange(1, 6, 2)),
    }
    found = undone(expressions, held(expressions))
    assert np.array_equal(whole(found.tensors["w"]), original)
    assert np.array_equal(whole(found.tensors["b"]), bias)
    assert not found.incomplete


def test_joined_matrices_vectors_and_stacks_come_apart():
    arrays = {f"m{i}": positive((2, 3), i) for i in range(3)} | {f"v{i}": positive((4,), 9 + i) for i in range(2)}
    source = Arrays(arrays)
    rows = {name: SourceRows(source, name) for name in arrays}
    expressions = {
        "joined": JoinedRows((rows["m0"], rows["m1"]), (4, 3)),
        "stack": JoinedRows((rows["m2"], ArrayRows(np.zeros((2, 3), np.float32))), (2, 2, 3)),
        "vector": JoinedRows((rows["v0"], rows["v1"]), (8,)),
    }
    found = undone(expressions, held(expressions))
    for name, array in arrays.items():
        assert np.array_equal(whole(found.tensors[name]), array)


def test_rows_that_the_file_does_not_have_are_named_and_zero():
    original = positive((5, 4))
    rows = SlicedRows(SourceRows(Arrays({"w": original}), "w"), 2, 5)
    found = undone({"t": rows}, held({"t": rows}))
    assert found.incomplete == {"w"}
    assert np.array_equal(whole(found.tensors["w"]), np.concatenate([np.zeros((2, 4)), original[2:]]))
    picked = PickedRows(SourceRows(Arrays({"w": original}), "w"), np.array([3, 1]))
    assert undone({"t": picked}, held({"t": picked})).incomplete == {"w"}


def test_rows_beyond_a_table_and_other_shapes_are_left_out():
    original = positive((3, 4))
    padded = PaddedRows(SourceRows(Arrays({"w": original}), "w"), 5)
    assert np.array_equal(whole(undone({"t": padded}, held({"t": padded})).tensors["w"]), original)
    shaped = ReshapedRows(SourceRows(Arrays({"w": original}), "w"), (3, 1, 4))
    assert undone({"t": shaped}, held({"t": shaped})).tensors["w"].shape == (3, 4)


@pytest.mark.parametrize(
    "rows",
    [
        lambda rows: ScaledRows(rows, 0.0),
        lambda rows: RowScaledRows(rows, np.zeros(3, np.float32)),
        lambda rows: MappedRows(rows, np.abs),
    ],
)
def test_what_has_no_inverse_is_refused_by_the_tensors_name(rows):
    expression = rows(SourceRows(Arrays({"some.weight": positive((3, 4))}), "some.weight"))
    with pytest.raises(UnsupportedModelError, match="some.weight"):
        undone({"t": expression}, held({"t": expression}))
