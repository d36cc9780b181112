"""GLM-4 (0414): norms before and after both halves of a layer, rope on half of a head in neighbouring pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import LAYER, SILU, attention_rules, embedding_rules, norm_rules
from edgepack.export.rules.family import Family, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "glm4")


def _dimensions(config: ModelConfig) -> dict[str, int]:
    standard = standard_dimensions(config)
    return standard | {"gate+up": 2 * standard["ff"]}


_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}

FAMILY = Family(
    name="glm4",
    classes=("Glm4ForCausalLM",),
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1.5625e-07,
        "max_position_embeddings": 131072,
        "partial_rotary_factor": 0.5,
    },
    metadata=_metadata,
    dimensions=_dimensions,
    requirements=(SILU,),
    tensors=(
        *embedding_rules(),
        *norm_rules(_NORMS),
        *attention_rules(),
        TensorRule("blk.{i}.ffn_up.weight", LAYER + "mlp.gate_up_proj.weight", "gate+up d"),
        TensorRule("blk.{i}.ffn_down.weight", LAYER + "mlp.down_proj.weight", "d ff"),
    ),
)
