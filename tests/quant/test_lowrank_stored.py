"""Low-rank factors as a file: what is stored is what was merged, and reading it back makes the same weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_llama import write_tiny

import edgepack
from edgepack.errors import RecipeError, UsageError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.model import read_tensor
from edgepack.quant.passes.lowrank.factors import centred_svd
from edgepack.quant.passes.lowrank.stored import FORMAT, read_factors, write_factors
from edgepack.quant.passes.lowrank.weights import LowRankSettings, factorise
from edgepack.quant.passes.run import PassRun

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import Checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "model")


def weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: read_tensor(checkpoint.tensors, name) for name in checkpoint.tensors.specs}


def test_stored_factors_make_the_weights_that_merging_made(model: Path, tmp_path: Path) -> None:
    path, original = tmp_path / "f.safetensors", open_checkpoint(model)
    merged = factorise(original, LowRankSettings("svd", rank=5), PassRun(tmp_path / "a", factors=path))
    again = factorise(original, LowRankSettings("stored"), PassRun(tmp_path / "b", factors=path))
    ours, theirs = weights(merged.checkpoint), weights(again.checkpoint)
    assert any(not np.array_equal(ours[name], read_tensor(original.tensors, name)) for name in ours)
    for name, weight in ours.items():
        np.testing.assert_allclose(theirs[name], weight, atol=1e-5)
    assert again.figures["greatest_rank"] == 5
    assert any("saves no bytes" in note for note in merged.notes)


def test_the_file_holds_us_v_and_mean_with_rows_of_v_of_length_one(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((12, 20)).astype(np.float32) + 1
    found = centred_svd(weight, rank=6)
    write_factors(tmp_path / "f.safetensors", {"w": found}, {"method": "svd", "rank": 6})
    with safe_open(str(tmp_path / "f.safetensors"), "numpy") as file:
        us, v, mean = (file.get_tensor(f"w.{part}") for part in ("us", "v", "mean"))
        about = json.loads(file.metadata()["about"])
    assert about == {"method": "svd", "rank": 6}
    np.testing.assert_allclose(v @ v.T, np.eye(6), atol=1e-5)
    singular = np.linalg.svd(weight - weight.mean(0), compute_uv=False)[:6]
    np.testing.assert_allclose(np.linalg.norm(us, axis=0), singular, rtol=1e-4)
    np.testing.assert_allclose(us @ v + mean, found.dense(), atol=1e-5)
    np.testing.assert_allclose(read_factors(tmp_path / "f.safetensors")["w"].dense(), found.dense(), atol=1e-5)


BROKEN = {
    "in its metadata": ({"w.us": np.ones((2, 1)), "w.v": np.ones((1, 3))}, {}),
    "expected .us": ({"w.us": np.ones((2, 1))}, {"format": FORMAT}),
    "mean": ({"w.us": np.ones((2, 1)), "w.v": np.ones((1, 3)), "w.mean": np.ones(4)}, {"format": FORMAT}),
    "NaN": ({"w.us": np.full((2, 1), np.nan), "w.v": np.ones((1, 3))}, {"format": FORMAT}),
    "end in": ({"w.x": np.ones(3)}, {"format": FORMAT}),
}


@pytest.mark.parametrize("told", BROKEN)
def test_a_file_of_another_form_is_refused(tmp_path: Path, told: str) -> None:
    tensors, metadata = BROKEN[told]
    save_file(tensors, tmp_path / "f.safetensors", metadata=metadata)
    with pytest.raises(RecipeError, match=told):
        read_factors(tmp_path / "f.safetensors")
    (tmp_path / "g.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(RecipeError):
        read_factors(tmp_path / "g.safetensors")


def test_factors_of_another_model_and_a_missing_file_are_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    write_factors(path, {"x": centred_svd(np.ones((4, 4), np.float32), rank=1)}, {})
    with pytest.raises(RecipeError, match="expected factors of"):
        factorise(open_checkpoint(model), LowRankSettings("stored"), PassRun(tmp_path / "a", factors=path))
    with pytest.raises(RecipeError, match="--factors FILE"):
        factorise(open_checkpoint(model), LowRankSettings("stored"), PassRun(tmp_path / "b"))
    with pytest.raises(UsageError, match="expected a pass lowrank"):
        edgepack.export(model, target="gguf-f32", factors=path, dry_run=True)
