"""Nomic's BERT (nomic-embed-text 1 and 1.5): rope in place of learnt positions, gated feed-forward networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import EQUAL_HEADS, WHOLE_HEADS
from edgepack.export.rules.encoder import encoder_dimensions, encoder_metadata
from edgepack.export.rules.family import Family, Origin, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_NAME = "nomic-bert"
_LAYER = "layers.{i}."
_PUBLISHED = "encoder.layers.{i}."
_BIASES = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")


def _metadata(config: ModelConfig) -> dict[str, Value]:
    # Beyond what it was trained for the original scales rope by the text's length, which llama.cpp does not.
    positions = config.count("max_position_embeddings")
    context = min(positions, config.count("max_trained_positions", default=positions))
    common = common_metadata(config, _NAME, rope_types=("default",), epsilon="layer_norm_eps")
    return common | encoder_metadata(config, _NAME) | {f"{_NAME}.context_length": u32(context)}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return encoder_dimensions(config) | {"qkv": 3 * config.hidden}


def _matrix(target: str, held: str, published: str, shape: str) -> TensorRule:
    return TensorRule(
        f"blk.{{i}}.{target}.weight",
        f"{_LAYER}{held}.weight",
        shape,
        alternatives=(Origin(f"{_PUBLISHED}{published}.weight"),),
    )


def _norm(target: str, held: str, published: str) -> tuple[TensorRule, ...]:
    return tuple(
        TensorRule(f"{target}.{kind}", f"{held}.{kind}", "d", alternatives=(Origin(f"{published}.{kind}"),))
        for kind in ("weight", "bias")
    )


FAMILY = Family(
    name=_NAME,
    classes=("NomicBertModel", "NomicBertForMaskedLM"),
    spellings={
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "layer_norm_eps": "layer_norm_epsilon",
        "rope_theta": "rotary_emb_base",
        "hidden_act": "activation_function",
    },
    defaults={
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 2048,
        "type_vocab_size": 2,
        "rope_theta": 1000.0,
    },
    metadata=_metadata,
    dimensions=_dimensions,
    renames=(("", "nomic_bert."),),
    requirements=(
        Requirement("hidden_act", ("silu", "swish", "swiglu"), "its graph uses SiLU"),
        Requirement("moe_every_n_layers", (0,), "its graph has no experts"),
        Requirement("rotary_emb_fraction", (1,), "its graph rotates whole heads"),
        Requirement("rotary_emb_interleaved", (False,), "its graph rotates halves of heads"),
        Requirement("prenorm", (False,), "its graph normalises after attention"),
        Requirement("causal", (False,), "its graph attends in both directions"),
        *(Requirement(key, (False,), "its graph has no such bias") for key in _BIASES),
        WHOLE_HEADS,
        EQUAL_HEADS,
    ),
    unused=(r"(^|\.)pooler\.", r"^(lm_head|cls)\."),
    tied_head=None,
    tensors=(
        TensorRule("token_embd.weight", "embeddings.word_embeddings.weight", "v d"),
        TensorRule("token_types.weight", "embeddings.token_type_embeddings.weight", "types d"),
        *_norm("token_embd_norm", "embeddings.LayerNorm", "emb_ln"),
        TensorRule(
            "blk.{i}.attn_qkv.weight",
            tuple(f"{_LAYER}self_attn.{part}_proj.weight" for part in "qkv"),
            "qkv d",
            alternatives=(Origin(_PUBLISHED + "attn.Wqkv.weight"),),
        ),
        _matrix("attn_output", "self_attn.o_proj", "attn.out_proj", "d d"),
        *_norm("blk.{i}.attn_output_norm", _LAYER + "post_attention_layernorm", _PUBLISHED + "norm1"),
        _matrix("ffn_gate", "mlp.gate_proj", "mlp.fc12", "ff d"),
        _matrix("ffn_up", "mlp.up_proj", "mlp.fc11", "ff d"),
        _matrix("ffn_down", "mlp.down_proj", "mlp.fc2", "d ff"),
        *_norm("blk.{i}.layer_output_norm", _LAYER + "post_mlp_layernorm", _PUBLISHED + "norm2"),
    ),
)
