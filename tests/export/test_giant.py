"""A model of 358 billion parameters is planned exactly, without disk."""

from __future__ import annotations

from io import BytesIO
from math import prod
from typing import TYPE_CHECKING

import pytest
from plan_giant import mapped_giant
from references.llama_quantize import llama_types

from edgepack.export.plan import plan_export
from edgepack.gguf.types import GGMLType, TensorInfo
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.mapped import MappedModel


@pytest.fixture(scope="module")
def giant() -> MappedModel:
    return mapped_giant()


def test_the_giant_has_358_billion_parameters_in_93_blocks(giant: MappedModel) -> None:
    assert round(sum(prod(rows.shape) for rows in giant.tensors.values()) / 1e9) == 358
    assert giant.metadata["glm4moe.block_count"].value == 93
    assert giant.tensors["blk.3.ffn_gate_exps.weight"].shape == (160, 1536, 5120)
    assert "blk.92.nextn.eh_proj.weight" in giant.tensors


def test_its_size_is_that_of_the_header_and_of_every_tensor(giant: MappedModel) -> None:
    plan = plan_export(giant, find_target("q5_k_m"))
    header = BytesIO()
    GGUFWriter(header, plan.metadata, plan.infos).write_header()
    body = sum(
        -(-prod(info.shape) // info.type.block_size * info.type.block_bytes // 32) * 32  # padded to 32 bytes
        for info in plan.infos
    )
    assert plan.total_bytes == len(header.getvalue()) + body


def test_its_types_are_those_of_llama_quantize(giant: MappedModel, tmp_path: Path) -> None:
    """llama.cpp reads names and metadata, so its file may be a header with small shapes and holes."""
    small = [
        TensorInfo(name, (*rows.shape[:-2], 2, 256)[-len(rows.shape) :] if len(rows.shape) > 1 else (32,), GGMLType.F32)
        for name, rows in giant.tensors.items()
    ]
    path = tmp_path / "small.gguf"
    with path.open("wb") as stream:
        writer = GGUFWriter(stream, plan_export(giant, find_target("f32")).metadata, small)
        writer.write_header()
        stream.truncate(writer.total_bytes)
    for label in ("Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_L", "Q2_K", "IQ4_XS", "MXFP4_MOE"):
        target = find_target(label)
        types = {info.name: info.type.name for info in plan_export(giant, target).infos}
        assert types == llama_types(path, target.file_type)
