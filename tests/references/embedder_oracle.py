"""What an embedder's or a reranker's export is held against: transformers' hidden states, and its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from references.llama_embeddings import llama_pooled, llama_token_embeddings
from references.tiny_checkpoints import VOCABULARY

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from references.tiny_checkpoints import TinyModel

TOKENS = np.random.default_rng(1).integers(3, VOCABULARY, 48)
TEXTS = np.random.default_rng(2).integers(3, VOCABULARY, (8, 32))


def embedding_error(model: Any, path: Path) -> float:
    """The largest difference of any token's last hidden state, in standard deviations of transformers'."""
    with torch.no_grad():
        expected = model.base_model(torch.tensor(TOKENS)[None]).last_hidden_state[0].numpy()
    got = llama_token_embeddings(path, TOKENS)
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / expected.std())


def scoring_error(tiny: TinyModel, model: Any, path: Path) -> float:
    """The largest difference of any score, in standard deviations over several texts: one may have a single score."""
    expected = torch_scores(model, tiny)
    got = np.stack([llama_pooled(path, text) for text in TEXTS[:3]])
    assert got.shape == expected[:3].shape
    return float(np.abs(got - expected[:3]).max() / expected.std())


def torch_scores(model: Any, tiny: TinyModel) -> NDArray[np.float32]:
    """Scores of every text: [texts, labels]; of Qwen 3 their probabilities, a single one's against 0."""
    with torch.no_grad():
        scores = model(torch.tensor(TEXTS)).logits
    if tiny.family == "Qwen3":
        scores = scores if scores.shape[1] > 1 else torch.cat((scores, torch.zeros_like(scores)), 1)
        scores = scores.softmax(1)
    found: NDArray[np.float32] = scores.numpy()
    return found
