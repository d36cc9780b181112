"""Apertus: norms on heads, and an activation (xIELU) whose parameters were learnt, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    LAYER,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
    tied_head_copy,
)
from edgepack.export.rules.family import BUFFERS, Family, Requirement
from edgepack.export.rules.metadata import PLAIN_ROPE, common_metadata
from edgepack.export.rules.rope_factors import llama3_tensor
from edgepack.gguf.types import Value, ValueType, array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header
    from edgepack.model import TensorSource

_PARAMETERS: dict[str, float | None] = {"alpha_n": None, "alpha_p": None, "beta": 0.5, "eps": -1e-6}
"""Of xIELU, with the values that transformers takes where a checkpoint has none."""


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "apertus", rope_types=(*PLAIN_ROPE, "llama3"))


def _stored(config: ModelConfig, source: TensorSource) -> dict[str, Value]:
    return {
        f"xielu.{name}": array(ValueType.FLOAT32, [_scalar(source, name, i) for i in range(config.n_layers)])
        for name in _PARAMETERS
    }


def _scalar(source: TensorSource, name: str, layer: int) -> float:
    tensor, usual = f"{LAYER.format(i=layer)}mlp.act_fn.{name}", _PARAMETERS[name]
    if tensor not in source.specs:
        if usual is None:
            raise CheckpointError(f"checkpoint lacks tensor '{tensor}', which apertus needs")
        return usual
    if source.specs[tensor].shape not in ((), (1,)):
        raise CheckpointError(f"tensor '{tensor}': expected one number, got {list(source.specs[tensor].shape)}")
    return float(source.read_rows(tensor, 0, 1).item())


def _restored(header: Header) -> dict[str, NDArray[np.float32]]:
    """XIELU's parameters, which are tensors of one number in a checkpoint."""
    return {
        f"{LAYER.format(i=layer)}mlp.act_fn.{name}": np.array([value], np.float32)
        for name in _PARAMETERS
        for layer, value in enumerate(header.metadata[f"xielu.{name}"].value)
    }


FAMILY = Family(
    name="apertus",
    classes=("ApertusForCausalLM",),
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 65536, "rope_theta": 12e6},
    metadata=_metadata,
    backwards=Backwards(stored=_restored),
    stored=_stored,
    computed=llama3_tensor,
    requirements=(Requirement("hidden_act", ("xielu",), "its graph uses xIELU"), WHOLE_HEADS),
    unused=(*BUFFERS, r"\.mlp\.act_fn\.(alpha_n|alpha_p|beta|eps)$"),  # in the metadata
    tensors=(
        *embedding_rules(),
        tied_head_copy(),
        *norm_rules({"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"}),
        *attention_rules(output_bias=True),
        *head_norm_rules(),
        *(rule for rule in feed_forward_rules() if "ffn_gate" not in rule.target),
    ),
)
