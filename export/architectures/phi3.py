"""Phi 3, 3.5 and 4: fused q, k, v and fused gate and up, longrope. The context ends at the sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import EQUAL_HEADS, LAYER, LLAMA_NORMS, SILU, embedding_rules, norm_rules
from edgepack.export.rules.family import Family, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import attention_window, common_metadata
from edgepack.export.rules.rope_factors import LONGROPE, longrope_tensors

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "phi3", rope_types=("default", *LONGROPE), window=attention_window(config))


def _dimensions(config: ModelConfig) -> dict[str, int]:
    standard = standard_dimensions(config)
    return standard | {"qkv": standard["q"] + 2 * standard["kv"], "gate+up": 2 * standard["ff"]}


FAMILY = Family(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
    metadata=_metadata,
    dimensions=_dimensions,
    computed=longrope_tensors,
    requirements=(SILU, EQUAL_HEADS),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        TensorRule("blk.{i}.attn_qkv.weight", LAYER + "self_attn.qkv_proj.weight", "qkv d"),
        TensorRule("blk.{i}.attn_output.weight", LAYER + "self_attn.o_proj.weight", "d q"),
        TensorRule("blk.{i}.ffn_up.weight", LAYER + "mlp.gate_up_proj.weight", "gate+up d"),
        TensorRule("blk.{i}.ffn_down.weight", LAYER + "mlp.down_proj.weight", "d ff"),
    ),
)
