"""InternLM 3, which is Llama's graph; transformers reads it as Llama too."""

from __future__ import annotations

from dataclasses import replace

from edgepack.export.architectures.llama import FAMILY as LLAMA

FAMILY = replace(
    LLAMA,
    classes=("InternLM3ForCausalLM",),
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
    },
)
