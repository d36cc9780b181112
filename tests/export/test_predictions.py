"""Layers of prediction compute in llama.cpp's graph what transformers computes, from the same tokens and states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from references.family_oracle import assert_equal_logits, exported, token_ids
from references.mtp_oracle import llama_predictions, published_tensors, random_layer, torch_predictions
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint
from references.tiny_decoders import DECODERS, GLM_MOE
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path


MODELS = (
    TinyModel("glm-4-moe", "Glm4Moe", GLM_MOE | {"use_qk_norm": True}),
    *(tiny for tiny in DECODERS if tiny.name == "deepseek-3"),
)


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_a_layer_of_prediction_predicts_what_that_of_transformers_does(
    tiny: TinyModel, books: Path, tmp_path: Path
) -> None:
    model, ids = random_model(tiny), token_ids(24)
    hidden = np.random.default_rng(5).normal(size=(len(ids), model.config.hidden_size)).astype(np.float32)
    folder = write_checkpoint(model, tmp_path / "model", books)
    predicting, weights = random_layer(model), folder / "model.safetensors"
    save_file(load_file(weights) | published_tensors(predicting, model), weights)
    path = exported(folder, tmp_path / "model.gguf")
    assert_equal_logits(llama_predictions(path, ids, hidden), torch_predictions(predicting, ids, hidden), 1e-4)
