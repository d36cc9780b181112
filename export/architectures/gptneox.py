"""GPT-NeoX and Pythia: q, k, v fused head by head, rope on a quarter of a head, both halves of a layer in parallel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import EQUAL_HEADS, GELU, tied_head_copy
from edgepack.export.rules.family import Family, Origin, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata
from edgepack.export.rules.permutations import split_fused_heads
from edgepack.gguf.types import Value, boolean

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.family import Transform

_LAYER = "gpt_neox.layers.{i}."


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "gptneox", epsilon="layer_norm_eps") | {
        "gptneox.use_parallel_residual": boolean(config.flag("use_parallel_residual", default=True))
    }


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return standard_dimensions(config) | {"3d": 3 * config.hidden}


def _pair(target: str, source: str, shape: str, transform: Transform | None = None) -> tuple[TensorRule, ...]:
    """A weight and its bias."""
    return (
        TensorRule(f"{target}.weight", f"{source}.weight", shape, transform),
        TensorRule(f"{target}.bias", f"{source}.bias", shape.split(maxsplit=1)[0], transform),
    )


FAMILY = Family(
    name="gptneox",
    classes=("GPTNeoXForCausalLM",),
    defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "rotary_emb_base": 10000,
        "partial_rotary_factor": 0.25,
    },
    metadata=_metadata,
    dimensions=_dimensions,
    requirements=(
        Requirement("hidden_act", GELU, "its graph uses GELU"),
        Requirement("attention_bias", (True,), "its graph has a bias in attention"),
        EQUAL_HEADS,
    ),
    unused=(r"rotary_emb\.inv_freq$", r"\.attention\.(masked_)?bias$"),
    tied_head="embed_out.weight",
    tensors=(
        TensorRule("token_embd.weight", "gpt_neox.embed_in.weight", "v d"),
        *_pair("output_norm", "gpt_neox.final_layer_norm", "d"),
        TensorRule("output.weight", "embed_out.weight", "v d", alternatives=(Origin("lm_head.weight"),)),
        tied_head_copy("gpt_neox.embed_in.weight"),
        *_pair("blk.{i}.attn_norm", _LAYER + "input_layernorm", "d"),
        *_pair("blk.{i}.ffn_norm", _LAYER + "post_attention_layernorm", "d"),
        *_pair("blk.{i}.attn_qkv", _LAYER + "attention.query_key_value", "3d d", split_fused_heads),
        *_pair("blk.{i}.attn_output", _LAYER + "attention.dense", "d d"),
        *_pair("blk.{i}.ffn_up", _LAYER + "mlp.dense_h_to_4h", "ff d"),
        *_pair("blk.{i}.ffn_down", _LAYER + "mlp.dense_4h_to_h", "d ff"),
    ),
)
