"""Mixtral: Llama's graph with experts in every layer, their weights normalised over those chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import (
    LAYER,
    LLAMA_NORMS,
    SILU,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    norm_rules,
)
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import Family, Origin, TensorRule
from edgepack.export.rules.metadata import attention_window, common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "llama", window=attention_window(config))


FAMILY = Family(
    name="llama",
    classes=("MixtralForCausalLM",),
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    metadata=_metadata,
    requirements=(SILU, WHOLE_HEADS),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *attention_rules(interleaved=True),
        TensorRule(
            "blk.{i}.ffn_gate_inp.weight",
            LAYER + "block_sparse_moe.gate.weight",
            "e d",
            alternatives=(Origin(LAYER + "mlp.gate.weight"),),
        ),
        *expert_rules(
            LAYER + "block_sparse_moe.experts.",
            fused_prefix=LAYER + "mlp.experts.",
            names=("w1", "w3", "w2"),
            width="ff",
        ),
    ),
)
