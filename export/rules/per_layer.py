"""What Gemma 3n and Gemma 4 share: embeddings that every layer reads for itself, layers without keys of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.row_functions import PaddedRows
from edgepack.export.rules.decoder import LAYER, norm_rules
from edgepack.export.rules.family import TensorRule
from edgepack.export.rules.metadata import SLIDING_OR_FULL

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows


def per_layer_dimensions(config: ModelConfig) -> dict[str, int]:
    """P the width of a layer's embedding · lp of all layers'."""
    width = config.count("hidden_size_per_layer_input")
    return {"p": width, "lp": width * config.n_layers}


def _for_every_token(rows: Rows, config: ModelConfig) -> Rows:
    """Gemma 3n's table ends before the tokens of images and sounds; transformers gives those its first row."""
    return PaddedRows(rows, config.vocab_size) if rows.shape[0] < config.vocab_size else rows


def n_shared(config: ModelConfig) -> int:
    """The last layers that take keys and values of an earlier one."""
    return config.count("num_kv_shared_layers") if config.get("num_kv_shared_layers") else 0


def has_keys(config: ModelConfig, layer: int) -> bool:
    """Whether a layer has keys and values of its own."""
    return layer < config.n_layers - n_shared(config)


def shares_keys(config: ModelConfig, layer: int) -> bool:
    """Whether a layer takes keys and values of an earlier one."""
    return not has_keys(config, layer)


def shares_as_llama_cpp(config: ModelConfig, kinds: list[str]) -> bool:
    """Whether the layers before those that share end in a sliding and a full one, whose keys llama.cpp shares."""
    return not n_shared(config) or kinds[: config.n_layers - n_shared(config)][-2:] == list(SLIDING_OR_FULL)


PER_LAYER_RULES = (
    TensorRule("per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight", "v lp", _for_every_token),
    TensorRule("per_layer_model_proj.weight", "model.per_layer_model_projection.weight", "lp d"),
    TensorRule("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", "p"),
    TensorRule("blk.{i}.inp_gate.weight", LAYER + "per_layer_input_gate.weight", "p d"),
    TensorRule("blk.{i}.proj.weight", LAYER + "per_layer_projection.weight", "d p"),
    *norm_rules({"post_norm": "post_per_layer_input_norm"}),
)
