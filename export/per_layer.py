"""Embeddings that every layer reads for itself, which Gemma 3n and Gemma 4 have: one table for all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.decoder_rules import LAYER, norm_rules
from edgepack.export.family import TensorRule

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig


def per_layer_dimensions(config: ModelConfig) -> dict[str, int]:
    """P the width of a layer's embedding · lp of all layers' · pv rows of the table."""
    width = config.count("hidden_size_per_layer_input")
    return {
        "p": width,
        "lp": width * config.n_layers,
    }


PER_LAYER_RULES = (
    TensorRule("per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight", "v lp"),
    TensorRule("per_layer_model_proj.weight", "model.per_layer_model_projection.weight", "lp d"),
    TensorRule("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", "p"),
    TensorRule("blk.{i}.inp_gate.weight", LAYER + "per_layer_input_gate.weight", "p d"),
    TensorRule("blk.{i}.proj.weight", LAYER + "per_layer_projection.weight", "d p"),
    *norm_rules({"post_norm": "post_per_layer_input_norm"}),
)
