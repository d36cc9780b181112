"""Experts on the wire: each has curvature of its own, and both forms of a checkpoint give the same file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint  # noqa: E402
from wire_models import BOOKS  # noqa: E402

from edgepack.edge.llama.runtime import LoadedModel  # noqa: E402
from edgepack.export.checkpoint import open_checkpoint  # noqa: E402
from edgepack.export.gguf_file import write_gguf  # noqa: E402
from edgepack.export.wire.plan import WireModel, WireSettings  # noqa: E402
from edgepack.packaging.pack import pack_archive  # noqa: E402
from edgepack.packaging.restore.unpack import unpack_archive  # noqa: E402
from edgepack.quant.calibration.curvature import measure  # noqa: E402
from edgepack.quant.calibration.curvature_store import CurvatureStore  # noqa: E402
from edgepack.quant.calibration.expert_curvature import ExpertMoments, ExpertSquares  # noqa: E402
from edgepack.quant.codecs.ggml.host_grids import HOSTS  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

MOE = {
    "qwen3": TinyModel("qwen3", "Qwen3Moe", {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "head_dim": 16,
        "num_hidden_layers": 2, "norm_topk_prob": True,
    }),
    "mixtral": TinyModel("mixtral", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, (6, 64))


def measured(model: Path, tokens: np.ndarray, folder: Path) -> CurvatureStore:
    store = CurvatureStore(folder / "curvature")
    store.fill(measure(open_checkpoint(model), tokens, folder / "entering"))
    return store


def rounded(model: Path, store: CurvatureStore, folder: Path, divergence: float) -> tuple[Path, WireModel]:
    wire = WireModel(open_checkpoint(model), store, WireSettings(HOSTS["q8"]), np.zeros((1, 1), np.int64), threads=2)
    result = wire.round((24 * divergence / wire.weights) ** 0.5, folder / "blocks")
    write_gguf(result.plan, folder / "out.gguf", threads=1)
    return folder / "out.gguf", wire


@pytest.mark.parametrize("kind", MOE)
def test_fine_grids_give_the_original_and_both_forms_the_same_bytes(
    kind: str, tokens: np.ndarray, tmp_path: Path
) -> None:
    whole, files = random_model(MOE[kind]), []
    for fused in (False, True):
        folder = tmp_path / f"{fused}"
        folder.mkdir()
        model = write_checkpoint(whole, folder / "model", BOOKS, fused_experts=fused)
        store = measured(model, tokens, folder)
        gguf, wire = rounded(model, store, folder, 1e-4)
        assert any("_exps" in tensor.info.name for tensor in wire.matrices)
        files.append(gguf.read_bytes())
    assert files[0] == files[1]
    with torch.no_grad():
        reference = whole(torch.from_numpy(tokens[:1])).logits[0].log_softmax(-1)
    with LoadedModel(gguf) as loaded:
        candidate = torch.from_numpy(loaded.logits(tokens[0].tolist())).log_softmax(-1)
    # The median: a rounded router's input may send a token elsewhere, which costs more than any rounding.
    assert float((reference.exp() * (reference - candidate)).sum(-1).median()) < 5e-3
    packed = pack_archive(gguf, tmp_path / "out.edgepack")
    assert unpack_archive(packed.output, tmp_path / "again.gguf").output.read_bytes() == gguf.read_bytes()


def test_curvature_of_an_expert_is_that_of_its_tokens(tokens: np.ndarray, tmp_path: Path) -> None:
    whole = random_model(MOE["qwen3"])
    model = write_checkpoint(whole, tmp_path / "model", BOOKS, fused_experts=True)
    store = measured(model, tokens, tmp_path)
    seen: dict[int, torch.Tensor] = {}

    def look(_module, arguments):
        hidden, chosen = arguments[0], arguments[1]
        for expert in range(4):
            seen[expert] = hidden[(chosen == expert).any(-1)]

    whole.model.layers[0].mlp.experts.register_forward_pre_hook(look)
    with torch.no_grad():
        whole(torch.from_numpy(tokens))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert f"{name}[4]" not in store
    mean = sum(rows.T @ rows for rows in seen.values()) / sum(map(len, seen.values()))
    for expert, rows in seen.items():
        expected = (rows.T @ rows + 64 * mean) / (len(rows) + 64)
        torch.testing.assert_close(store.inputs(f"{name}[{expert}]"), expected, rtol=1e-3, atol=1e-5)
        assert store.outputs(f"{name}[{expert}]").shape == (256,)


def test_an_expert_without_tokens_has_the_mean_and_costs_little() -> None:
    moments, squares = ExpertMoments(3), ExpertSquares(3)
    generator = torch.Generator().manual_seed(0)
    for expert, count in ((0, 1000), (1, 3)):
        moments.add(expert, torch.randn(count, 8, generator=generator) * (expert + 1))
        squares.add(expert, torch.randn(count, 5, generator=generator))
    first, few, none = moments.results()
    mean = (1000 * first + 3 * few) / 1003
    assert float((none - mean).norm() / mean.norm()) < 0.1
    assert float((few - first).norm()) < float((4 * torch.eye(8) - first).norm())
    costs = [float(one.mean()) for one in squares.results(1003)]
    assert costs[0] > 10 * costs[1] >= 10 * costs[2] > 0


def test_nothing_is_known_of_a_stack_that_no_token_reached() -> None:
    assert ExpertMoments(2).results() == []
    assert ExpertSquares(2).results(10) == []
