"""Phi 1, 1.5 and 2: attention and feed-forward side by side behind one norm, biases everywhere, the head's too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import EQUAL_HEADS, GELU, LAYER, tied_head_copy
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "phi2", rope_types=("default", "dynamic", "linear"), epsilon="layer_norm_eps")


def _affine(target: str, source: str, shape: str) -> tuple[TensorRule, ...]:
    """A matrix, or a norm, and its bias."""
    return (
        TensorRule(f"{target}.weight", f"{source}.weight", shape),
        TensorRule(f"{target}.bias", f"{source}.bias", shape.split(maxsplit=1)[0]),
    )


FAMILY = Family(
    name="phi2",
    classes=("PhiForCausalLM",),
    defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5},
    metadata=_metadata,
    requirements=(
        Requirement("hidden_act", GELU, "its graph uses GELU"),
        Requirement("qk_layernorm", (False,), "its graph has no norms on queries and keys"),
        EQUAL_HEADS,
    ),
    tensors=(
        TensorRule("token_embd.weight", "model.embed_tokens.weight", "v d"),
        *_affine("output_norm", "model.final_layernorm", "d"),
        *_affine("output", "lm_head", "v d"),
        tied_head_copy(),
        *_affine("blk.{i}.attn_norm", LAYER + "input_layernorm", "d"),
        *_affine("blk.{i}.attn_q", LAYER + "self_attn.q_proj", "q d"),
        *_affine("blk.{i}.attn_k", LAYER + "self_attn.k_proj", "kv d"),
        *_affine("blk.{i}.attn_v", LAYER + "self_attn.v_proj", "kv d"),
        *_affine("blk.{i}.attn_output", LAYER + "self_attn.dense", "d d"),
        *_affine("blk.{i}.ffn_up", LAYER + "mlp.fc1", "ff d"),
        *_affine("blk.{i}.ffn_down", LAYER + "mlp.fc2", "d ff"),
    ),
)
