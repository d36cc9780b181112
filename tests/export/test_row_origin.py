"""What rows say of their origin is what reading them gives: for every expression and every family's mapping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint

from edgepack.errors import UnsupportedModelError
from edgepack.export.arranged_rows import (
    JoinedRows,
    PermutedRows,
    ReshapedRows,
    ScaledRows,
    ShiftedRows,
    SlicedExperts,
    SlicedRows,
    TransposedRows,
)
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.inputs import input_statistics
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.row_origin import RowOrigin
from edgepack.export.rows import ArrayRows, SourceRows
from edgepack.export.wire.origins import Origins
from edgepack.model import TensorSpec, read_tensor
from edgepack.quant.calibration.statistics import LinearStatistics

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.rows import Rows
    from edgepack.model import TensorSource


@dataclass(frozen=True)
class Arrays:
    """A source of arrays in memory."""

    arrays: dict[str, NDArray[np.float32]]

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(name, array.shape, "f32") for name, array in self.arrays.items()}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        array = self.arrays[name]
        return np.array(array.reshape(-1, array.shape[-1])[start:stop])


COLUMNS = 4
SOURCE = Arrays({name: (100 * n + np.arange(24, dtype=np.float32)).reshape(6, COLUMNS) for n, name in enumerate("abc")})
VECTOR = Arrays({"v": np.arange(7, dtype=np.float32)})
STACK = Arrays({"s": np.arange(3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2)})


def check(rows: Rows, source: TensorSource) -> None:
    """The rows that are read are those that the origin names."""
    origin, read = rows.origin, rows.read(0, int(np.prod(rows.shape[:-1])))
    read = read.reshape(-1, 1) if len(rows.shape) == 1 else read
    assert len(origin) == len(read)
    factors = np.ones(len(read), np.float32) if origin.factors is None else origin.factors
    for part, name in enumerate(origin.names):
        whole = read_tensor(source, name)
        whole = whole.reshape(-1, 1) if whole.ndim == 1 else whole.reshape(-1, whole.shape[-1])
        whole = whole.T if name in origin.transposed else whole
        mine, taken = origin.of_part(part)
        expected = whole[taken] if origin.columns is None else whole[taken][:, origin.columns]
        np.testing.assert_array_equal(read[mine], expected * factors[mine, None])


@st.composite
def expressions(draw: Any, depth: int = 3) -> Rows:
    """Matrices of `COLUMNS` columns made of the sources."""
    kind = draw(st.sampled_from(["source", "permuted", "sliced", "scaled", "joined"] if depth else ["source"]))
    if kind == "source":
        return SourceRows(SOURCE, draw(st.sampled_from("abc")))
    if kind == "joined":
        parts = draw(st.lists(expressions(depth=depth - 1), min_size=1, max_size=3))
        return JoinedRows(parts, (sum(part.shape[0] for part in parts), COLUMNS))
    base = draw(expressions(depth=depth - 1))
    if kind == "permuted":
        return PermutedRows(base, np.array(draw(st.permutations(range(base.shape[0])))))
    if kind == "scaled":
        return ScaledRows(base, draw(st.sampled_from([0.5, 2.0])))
    start = draw(st.integers(0, base.shape[0] - 1))
    return SlicedRows(base, start, draw(st.integers(start + 1, base.shape[0])))


@given(expressions())
def test_rows_are_where_their_origin_says(rows: Rows) -> None:
    check(rows, SOURCE)
    assert rows.origin.is_linear


def test_vectors_stacks_and_transposes_say_so_too() -> None:
    vector, stack, matrix = SourceRows(VECTOR, "v"), SourceRows(STACK, "s"), SourceRows(SOURCE, "a")
    order = np.array([3, 1, 0, 2, 6, 5, 4])
    check(SlicedRows(PermutedRows(vector, order), 2, 5), VECTOR)
    check(JoinedRows([vector, vector], (14,)), VECTOR)
    check(SlicedExperts(stack, 1, 3), STACK)
    check(ReshapedRows(SlicedRows(stack, 1, 3), (8, 2)), STACK)
    turned = PermutedRows(TransposedRows(matrix), np.array([2, 0, 3, 1]))
    check(turned, SOURCE)
    assert turned.origin.transposed == {"a"}
    assert not turned.origin.is_plain


def test_what_is_not_made_of_single_rows_says_that_it_is_computed() -> None:
    matrix = SourceRows(SOURCE, "a")
    computed: list[Rows] = [
        ArrayRows(np.zeros((3, 4), np.float32)),
        TransposedRows(PermutedRows(matrix, np.arange(6)[::-1])),
        ReshapedRows(SlicedRows(matrix, 0, 1), (4,)),
        JoinedRows([SlicedRows(matrix, 0, 4), TransposedRows(SlicedRows(matrix, 0, 4))], (8, 4)),
        JoinedRows([SourceRows(Arrays({"q": np.eye(4, dtype=np.float32)}), "q"),
                    TransposedRows(SourceRows(Arrays({"q": np.eye(4, dtype=np.float32)}), "q"))], (8, 4)),
    ]  # fmt: skip
    for rows in computed:
        assert not rows.origin.is_linear
        assert len(rows.origin) == (rows.shape[0])
    assert [rows.origin.names for rows in computed] == [(), ("a",), ("a",), ("a",), ("q",)]
    assert not ShiftedRows(matrix, 1.0).origin.transposed


def test_columns_in_another_order_are_followed() -> None:
    origin = RowOrigin.of_tensor("a", 6).with_columns(np.array([1, 0, 3, 2])).with_columns(np.array([2, 3, 0, 1]))
    assert origin.columns is not None
    np.testing.assert_array_equal(origin.columns, [3, 2, 1, 0])
    assert not origin.is_plain


FAMILIES = (
    TinyModel("llama", "Llama"),
    TinyModel("mixtral", "Mixtral", {"num_local_experts": 4}),
    TinyModel("mixtral-fused", "Mixtral", {"num_local_experts": 4}, fused_experts=True),
    TinyModel("gpt-2", "GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}, "LMHeadModel"),
    TinyModel("gpt-neox", "GPTNeoX"),
    TinyModel("phi-3", "Phi3"),
)


@pytest.mark.parametrize("tiny", FAMILIES, ids=lambda tiny: tiny.name)
def test_every_matrix_of_a_family_says_where_its_rows_come_from(tiny: TinyModel, tmp_path: Path, books: Path) -> None:
    folder = write_checkpoint(random_model(tiny), tmp_path / "m", books, fused_experts=tiny.fused_experts)
    checkpoint = open_checkpoint(folder)
    mapped, origins = map_checkpoint(checkpoint), Origins(checkpoint)
    for name, rows in mapped.tensors.items():
        if len(rows.shape) < 2:
            continue
        check(rows, checkpoint.tensors)
        assert rows.origin.is_linear
        if rows.origin.transposed:
            with pytest.raises(UnsupportedModelError, match=f"rows of '{name}' are not rows of the checkpoint"):
                origins.of(name)
        else:
            assert origins.of(name).names == rows.origin.names


def moments(columns: int, seed: int) -> LinearStatistics:
    x = np.random.default_rng(seed).standard_normal((50, columns), dtype=np.float32)
    return LinearStatistics(50, np.abs(x).mean(0), np.square(x).mean(0), x.T @ x / 50)


def test_joined_rows_have_the_hessian_of_what_they_are_joined_from(books: Path) -> None:
    """Queries, keys and values in one matrix: each source's moments are those of the inputs of all."""
    checkpoint = open_checkpoint(books)
    tensors = map_checkpoint(checkpoint).tensors
    parts = [tensors[f"blk.0.attn_{which}.weight"] for which in "qkv"]
    rows = JoinedRows(parts, (sum(part.shape[0] for part in parts), parts[0].shape[1]))
    known = {"model.layers.0.self_attn.k_proj.weight": moments(rows.shape[1], 0)}
    found = input_statistics(rows, known)
    assert found is not None
    assert found.hessian is known["model.layers.0.self_attn.k_proj.weight"].hessian
    assert input_statistics(tensors["blk.0.attn_q.weight"], known) is None


def test_moments_follow_the_columns_and_stacks_have_none() -> None:
    order = np.array([2, 0, 3, 1])
    known = {"a": moments(COLUMNS, 1), "s": moments(2, 2)}

    class Reordered(SourceRows):
        @property
        def origin(self) -> RowOrigin:
            return super().origin.with_columns(order)

    found = input_statistics(Reordered(SOURCE, "a"), known)
    assert found is not None
    assert found.hessian is not None
    np.testing.assert_array_equal(found.mean_square, known["a"].mean_square[order])
    np.testing.assert_allclose(found.hessian.diagonal(), found.mean_square, rtol=1e-5)
    np.testing.assert_array_equal(found.hessian[0, 2], known["a"].hessian[2, 3])  # type: ignore[index]
    assert input_statistics(SourceRows(STACK, "s"), known) is None
    assert input_statistics(SourceRows(SOURCE, "a"), {"a": replace(moments(3, 3))}) is None
