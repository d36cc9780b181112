"""Predicted memory is llama.cpp's own, over the kept table and live; the plan behaves as memory does."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fit_truth import FULL, MIB, SMALL, combinations, measure
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import Shape, u32, write_sparse

from edgepack.edge.fit.allocator import Node, buffer_bytes
from edgepack.edge.fit.memory import MemoryRequest, compute_bytes, kv_layer_bytes, plan_memory, repacked_types
from edgepack.edge.fit.shape import ModelShape, read_shape
from edgepack.edge.llama.options import KV_TYPES
from edgepack.errors import UnsupportedModelError
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLE = json.loads((Path(__file__).parent / "fit_truth.json").read_text())
LIVE = [case for index, case in enumerate(combinations()) if index % 7 == 0]


def shape_of(shape: Shape, folder: Path) -> ModelShape:
    return read_shape(read_header(write_sparse(folder / "model.gguf", shape)))


def close(predicted: float, reported: float) -> bool:
    return abs(predicted - reported) <= max(0.03 * reported, 64 * MIB)


def test_the_kept_table_has_thirty_combinations_and_each_prediction_is_close() -> None:
    assert len(TABLE) >= 30
    for row in TABLE:
        for what in ("weights", "kv", "compute"):
            assert close(*row[what]), (row["model"], row["request"], what)
        # Far closer in fact: only the two decimals of llama.cpp's log are lost.
        assert all(abs(row[what][0] - row[what][1]) < 0.05 * MIB for what in ("weights", "kv", "compute"))


def test_the_kept_table_holds_what_is_predicted_today(tmp_path: Path) -> None:
    shapes = {name: shape_of(shape, tmp_path) for name, shape in (SMALL | FULL).items()}
    for row in TABLE:
        shape, request = shapes[row["model"]], MemoryRequest(**row["request"])
        assert compute_bytes(shape, request) == row["compute"][0]
        assert sum(kv_layer_bytes(shape, layer, request) for layer in shape.layers) == row["kv"][0]


@pytest.mark.parametrize(("name", "shape", "request_", "simulated"), LIVE, ids=[f"{c[0]}-{c[2].n_ctx}" for c in LIVE])
def test_llama_cpp_reports_what_is_predicted(
    name: str, shape: Shape, request_: MemoryRequest, simulated: bool, tmp_path: Path
) -> None:
    row = measure(name, write_sparse(tmp_path / "model.gguf", shape), request_, simulated=simulated)
    assert row.worst[1] < 0.05, row


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    return shape_of(FULL["llama 3B"], tmp_path_factory.mktemp("shapes"))


@given(
    n_ctx=st.integers(1, 131072),
    more=st.integers(0, 4096),
    kv=st.sampled_from(sorted(KV_TYPES)),
    layers=st.integers(0, 40),
)
@settings(max_examples=25, deadline=None)
def test_more_context_never_takes_less(llama: ModelShape, n_ctx: int, more: int, kv: str, layers: int) -> None:
    less, greater = (
        plan_memory(llama, MemoryRequest(n, n_ubatch=64, kv_type_k=kv, kv_type_v=kv, n_gpu_layers=layers))
        for n in (n_ctx, n_ctx + more)
    )
    assert less.cpu.total + less.gpu.total <= greater.cpu.total + greater.gpu.total


@pytest.mark.parametrize("layers", range(0, 31, 5))
def test_each_weight_is_on_one_side_only(llama: ModelShape, layers: int) -> None:
    plan = plan_memory(llama, MemoryRequest(4096, n_gpu_layers=layers))
    copies = llama.output_bytes if layers and llama.tied else 0  # the GPU needs the tied output matrix itself
    norm = 0 if llama.tied and layers else llama.width * 4 if llama.tied else 0
    assert plan.cpu.weights + plan.gpu.weights == pytest.approx(llama.nbytes + copies + norm, abs=llama.width * 4)
    whole = plan_memory(llama, MemoryRequest(4096))
    assert plan.cpu.kv + plan.gpu.kv == whole.cpu.kv


def test_a_window_bounds_the_cache_of_its_layers(tmp_path: Path) -> None:
    shape = shape_of(SMALL["gemma3"], tmp_path)
    windowed = next(layer for layer in shape.layers if layer.windowed)
    full = next(layer for layer in shape.layers if not layer.windowed)
    near, far = (MemoryRequest(n, n_ubatch=512) for n in (8192, 32768))
    assert kv_layer_bytes(shape, windowed, near) == kv_layer_bytes(shape, windowed, far)
    assert kv_layer_bytes(shape, full, far) == 4 * kv_layer_bytes(shape, full, near)


@pytest.mark.parametrize("architecture", ["rwkv6", "t5", "plamo2", "deepseek32"])
def test_an_architecture_of_another_kind_is_refused_not_guessed(architecture: str, tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "model.gguf", Shape(extra={"general.architecture": u32(0)}))
    header = read_header(path)
    metadata = {**header.metadata, "general.architecture": type(next(iter(header.metadata.values())))(8, architecture)}
    with pytest.raises(UnsupportedModelError, match=architecture):
        read_shape(type(header)(path, 3, metadata, header.tensors, 32, 0, 0))


def test_repacking_depends_on_the_cpu() -> None:
    assert repacked_types([]) == repacked_types(["AVX2", "AVX512", "AMX_INT8"]) == frozenset()
    assert GGMLType.Q4_K in repacked_types(["AVX2"])
    assert GGMLType.Q2_K in repacked_types(["AVX2", "AVX512"])
    assert GGMLType.Q8_0 in repacked_types(["NEON", "DOTPROD"])


def chain(sizes: Sequence[int]) -> list[Node]:
    nodes = [Node(sizes[0], is_input=True)]
    for size in sizes[1:]:
        nodes.append(Node(size, (nodes[-1],)))
    return nodes[1:]


@given(st.lists(st.integers(1, 2**30), min_size=2, max_size=30))
def test_a_buffer_holds_the_two_neighbours_of_a_chain_and_never_more_than_all(sizes: list[int]) -> None:
    placed = buffer_bytes(chain(sizes))
    aligned = [-(-size // 64) * 64 for size in sizes]
    assert placed >= max(map(sum, pairwise(aligned)))
    assert placed <= sum(aligned)


def test_an_output_is_never_overwritten() -> None:
    first = Node(640, is_input=True)
    kept = Node(640, (first,), layout=(1,), is_output=True)
    after = Node(640, (kept,), layout=(1,), in_place=True)
    assert buffer_bytes([kept, after]) == 1280  # the input's place is free again, the output's is not
