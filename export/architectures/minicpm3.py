"""MiniCPM 3: attention through latents, and embeddings, residuals and logits scaled as the 4B's are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    LLAMA_NORMS,
    NO_ATTENTION_BIAS,
    SILU,
    embedding_rules,
    feed_forward_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family, Requirement
from edgepack.export.rules.latent_attention import (
    latent_dimensions,
    latent_limits,
    latent_rules,
    query_width,
    with_rope_heads,
)
from edgepack.export.rules.metadata import common_metadata
from edgepack.export.rules.rope_factors import LONGROPE, longrope_tensors
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.backwards import Header, Settings

_BUILT_IN = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}


def _with_value_heads(config: ModelConfig) -> ModelConfig:
    """The width of a value head is that of an even share of the hidden size where it is not said."""
    return config.changed(v_head_dim=config.count("v_head_dim", default=config.hidden // config.n_heads))


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = {
        "attention.key_length": u32(query_width(config)),
        "attention.value_length": u32(_with_value_heads(config).count("v_head_dim")),
        "attention.q_lora_rank": u32(config.count("q_lora_rank")),
        "attention.kv_lora_rank": u32(config.count("kv_lora_rank")),
    }
    common = common_metadata(with_rope_heads(config), "minicpm3", rope_types=("default", "dynamic", *LONGROPE))
    return common | {f"minicpm3.{key}": value for key, value in keys.items()}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return latent_dimensions(_with_value_heads(config))


def _rope_factors(config: ModelConfig) -> dict[str, Rows]:
    return longrope_tensors(with_rope_heads(config))


def _settings(header: Header) -> Settings:
    turned = header.count("rope.dimension_count")
    return {
        "head_dim": turned,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": header.count("attention.key_length") - turned,
        "v_head_dim": header.count("attention.value_length"),
    }


FAMILY = Family(
    name="minicpm3",
    classes=("MiniCPM3ForCausalLM",),
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "original_max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "q_lora_rank": 768,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    computed=_rope_factors,
    remarks=latent_limits,
    requirements=(
        SILU,
        NO_ATTENTION_BIAS,
        Requirement("mlp_bias", (False,), "its graph has no such bias"),
        Requirement(
            "num_key_value_heads", lambda config: (config.n_heads,), "its graph has as many key heads as query heads"
        ),
        *(
            Requirement(key, (value,), "its graph has no other scale", absent_is_fine=False)
            for key, value in _BUILT_IN.items()
        ),
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules(LLAMA_NORMS),
        *latent_rules(split=False),
        *feed_forward_rules(),
    ),
)
