"""What the graphs of encoders that transformers does not have cannot honour is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from references.encoder_by_hand import random_weights
from references.encoder_checkpoints import JINA_2, NOMIC_2, D, nomic_2_shapes, written

from edgepack.errors import UnsupportedModelError
from edgepack.export.mapped_model import open_model

if TYPE_CHECKING:
    from pathlib import Path


def test_a_bias_of_experts_that_llama_cpp_leaves_out_is_refused(books: Path, tmp_path: Path) -> None:
    bias = {"encoder.layers.3.mlp.experts.bias": np.full(D, 0.1, np.float32)}
    folder = written(tmp_path / "model", books, NOMIC_2, random_weights(nomic_2_shapes()) | bias)
    with pytest.raises(UnsupportedModelError, match="layers.3.mlp.experts.bias' is not zero"):
        open_model(folder)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (JINA_2, {"position_embedding_type": "absolute"}, "position_embedding_type is 'absolute'"),
        (JINA_2, {"feed_forward_type": "original"}, "feed_forward_type is 'original'"),
        (NOMIC_2, {"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights is True"),
        (NOMIC_2, {"qkv_proj_bias": False}, "qkv_proj_bias is False"),
    ],
)
def test_what_the_graphs_lack_is_refused(
    config: dict[str, Any], changes: dict[str, Any], message: str, books: Path, tmp_path: Path
) -> None:
    folder = written(tmp_path / "model", books, config | changes, {})
    with pytest.raises(UnsupportedModelError, match=message):
        open_model(folder)
