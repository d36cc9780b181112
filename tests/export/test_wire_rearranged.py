"""Matrices that the wire follows though a GGUF holds them otherwise: columns in another order, rows that are scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from references.hybrid_models import HYBRIDS  # noqa: E402
from references.tiny_checkpoints import random_model, write_checkpoint  # noqa: E402
from references.tiny_decoders import DECODERS  # noqa: E402

from edgepack.errors import UnsupportedModelError  # noqa: E402
from edgepack.export.checkpoint import open_checkpoint  # noqa: E402
from edgepack.export.inputs import input_statistics  # noqa: E402
from edgepack.export.wire.curvatures import MatrixCurvatures  # noqa: E402
from edgepack.export.wire.origins import Origins  # noqa: E402
from edgepack.export.wire.plan import WireModel, WireSettings  # noqa: E402
from edgepack.quant.calibration.collect import collect  # noqa: E402
from edgepack.quant.calibration.curvature import measure  # noqa: E402
from edgepack.quant.calibration.curvature_store import CurvatureStore  # noqa: E402
from edgepack.quant.calibration.own_labels import refuse_shared_keys  # noqa: E402
from edgepack.quant.codecs.ggml.host_grids import HOSTS  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = np.random.default_rng(0).integers(3, 4000, (4, 48))


def written(name: str, folder: Path, books: Path) -> Path:
    tiny = next(each for each in (*HYBRIDS, *DECODERS) if each.name == name)
    return write_checkpoint(random_model(tiny), folder / "model", books, fused_experts=tiny.fused_experts)


def measured(model: Path, folder: Path) -> CurvatureStore:
    store = CurvatureStore(folder / "curvature")
    store.fill(measure(open_checkpoint(model), TOKENS, folder / "entering"))
    return store


def test_curvature_stands_in_the_order_of_a_ggufs_columns(books: Path, tmp_path: Path) -> None:
    model = written("qwen-3.5", tmp_path, books)
    wire = WireModel(
        open_checkpoint(model), measured(model, tmp_path), WireSettings(HOSTS["q8"]), TOKENS[:1], threads=1
    )
    info = next(each.info for each in wire.base.tensors if each.info.name == "blk.0.ssm_out.weight")
    known = collect(open_checkpoint(model), TOKENS, with_hessian=True).statistics
    expected = input_statistics(wire.model.tensors[info.name], known)
    assert expected is not None
    assert expected.hessian is not None
    costs = MatrixCurvatures(wire.curvatures, Origins(open_checkpoint(model)), open_checkpoint(model).tensors.specs)
    found = costs.inputs(info).double().numpy()
    assert wire.model.tensors[info.name].origin.columns is not None
    assert np.allclose(found, expected.hessian, rtol=1e-3, atol=1e-4 * np.abs(expected.hessian).max())
    assert np.allclose(costs.squares(info), found.diagonal(), rtol=1e-4)


def test_rows_that_were_multiplied_count_as_their_errors_do(books: Path, tmp_path: Path) -> None:
    model = written("falcon-h1", tmp_path, books)
    checkpoint, store = open_checkpoint(model), measured(model, tmp_path)
    wire = WireModel(checkpoint, store, WireSettings(HOSTS["q8"]), TOKENS[:1], threads=1)
    costs = MatrixCurvatures(store, Origins(checkpoint), checkpoint.tensors.specs)
    info = next(each.info for each in wire.base.tensors if each.info.name == "blk.0.attn_k.weight")
    origin = wire.model.tensors[info.name].origin
    assert origin.factors is not None
    unscaled = store.outputs(origin.names[0]).numpy()[origin.rows]
    assert np.allclose(costs.outputs(info).numpy() * origin.factors**2, unscaled, rtol=1e-5)


def test_what_drift_cannot_follow_is_refused_by_name(books: Path, tmp_path: Path) -> None:
    model = written("qwen-3.5", tmp_path, books)
    settings = WireSettings(HOSTS["q8"], drift=True)
    with pytest.raises(UnsupportedModelError, match="which --drift cannot follow"):
        WireModel(open_checkpoint(model), measured(model, tmp_path), settings, TOKENS[:1], threads=1)


@pytest.mark.parametrize("nested", [False, True])
def test_layers_that_share_keys_are_refused_before_any_work(nested: bool) -> None:
    config = {"num_kv_shared_layers": 2}
    with pytest.raises(UnsupportedModelError, match="2 layers share keys"):
        refuse_shared_keys({"text_config": config} if nested else config)
    refuse_shared_keys({"num_kv_shared_layers": 0})
