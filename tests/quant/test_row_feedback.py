"""Rows that err together: what feedback along them is predicted to leave, and where G is kept for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from wire_models import write_small_llama  # noqa: E402

from edgepack.export.checkpoint import open_checkpoint  # noqa: E402
from edgepack.export.mapped_model import map_checkpoint  # noqa: E402
from edgepack.export.plan import plan_export  # noqa: E402
from edgepack.export.wire.curvatures import MatrixCurvatures  # noqa: E402
from edgepack.export.wire.origins import Origins  # noqa: E402
from edgepack.quant.calibration import block_sums  # noqa: E402
from edgepack.quant.calibration.curvature import Curvature, measure  # noqa: E402
from edgepack.quant.calibration.curvature_store import CurvatureStore  # noqa: E402
from edgepack.quant.row_feedback import RowFeedback  # noqa: E402
from edgepack.quant.types.targets import find_target  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def together(rows: int, factors: int, seed: int = 0) -> torch.Tensor:
    """G of gradients that are mostly mixtures of a few."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(4096, factors, generator=generator) @ torch.randn(factors, rows, generator=generator)
    gradients = mixed + 0.05 * torch.randn(4096, rows, generator=generator)
    return gradients.T @ gradients / len(gradients)


def test_rows_that_do_not_err_together_leave_all_of_the_loss() -> None:
    assert RowFeedback.of(torch.diag(torch.rand(24) + 0.1)).left == pytest.approx(1.0, abs=1e-5)


def test_the_fewer_directions_gradients_have_the_less_is_left() -> None:
    left = [RowFeedback.of(together(48, factors)).left for factors in (2, 8, 24)]
    assert left == sorted(left)
    assert 0 < left[0] < 0.35


def test_the_factor_is_that_of_the_inverse_in_the_order_of_costs() -> None:
    joint = together(20, 4)
    found = RowFeedback.of(joint)
    assert (joint.diagonal()[found.order].diff() <= 0).all()
    inverse = (found.upper.T @ found.upper).double().inverse()
    rest = inverse - joint[found.order][:, found.order].double()  # what was added: to the diagonal alone
    np.testing.assert_allclose(rest - torch.diag(rest.diagonal()), 0, atol=1e-3 * float(joint.diagonal().max()))
    assert (rest.diagonal() > 0).all()


def test_a_store_gives_back_g_where_it_was_kept(tmp_path: Path) -> None:
    kept = Curvature(torch.eye(4), torch.ones(6), together(6, 2))
    store = CurvatureStore(tmp_path / "c")
    store.fill([{"a": kept, "b": Curvature(kept.inputs, torch.ones(3))}])
    assert torch.equal(CurvatureStore(tmp_path / "c").joint("a"), kept.joint)
    assert CurvatureStore(tmp_path / "c").joint("b") is None


def test_g_is_kept_of_enough_tokens_where_it_pays_and_follows_the_rows_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(write_small_llama(tmp_path / "m", vocab_size=4096, num_hidden_layers=1))
    tokens = np.random.default_rng(0).integers(0, 4000, (8, 64))
    monkeypatch.setattr(block_sums, "JOINT_LEFT", 1.1)
    few = {n: v for part in measure(checkpoint, tokens[:1], tmp_path / "few") for n, v in part.items()}
    assert all(value.joint is None for value in few.values())
    store = CurvatureStore(tmp_path / "c")
    store.fill(measure(checkpoint, tokens, tmp_path / "entering"))
    costs = MatrixCurvatures(store, Origins(checkpoint), checkpoint.tensors.specs)
    infos = {info.name: info for info in plan_export(map_checkpoint(checkpoint), find_target("q8")).infos}
    for name in ("attn_q", "attn_k", "ffn_down"):
        info = infos[f"blk.0.{name}.weight"]
        np.testing.assert_allclose(costs.joint(info).diagonal(), costs.outputs(info), rtol=1e-5)
    assert costs.joint(infos["blk.0.ffn_up.weight"]) is None  # more outputs than inputs
    assert not torch.equal(
        store.joint("model.layers.0.self_attn.q_proj.weight"), costs.joint(infos["blk.0.attn_q.weight"])
    )
