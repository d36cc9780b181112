"""Nomic's BERT: rope in place of learnt positions.

Feed-forward networks of nomic-embed-text 1 and 1.5 are gated; every second layer of 2 has experts in their place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.arranged_rows import ReshapedRows
from edgepack.export.expert_rows import TransposedExperts
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import EQUAL_HEADS, GELU, WHOLE_HEADS, restricted
from edgepack.export.rules.encoder import encoder_dimensions, encoder_metadata, layer_norm
from edgepack.export.rules.family import Family, Origin, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.model import TensorSource

_NAME, _EXPERTS_NAME = "nomic-bert", "nomic-bert-moe"
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


def _second_generation(config: ModelConfig) -> Family | None:
    return EXPERTS if config.get("moe_every_n_layers") else None


def _published_affine(target: str, source: str, shape: str) -> tuple[TensorRule, ...]:
    return (
        TensorRule(f"blk.{{i}}.{target}.weight", f"{_PUBLISHED}{source}.weight", shape),
        TensorRule(f"blk.{{i}}.{target}.bias", f"{_PUBLISHED}{source}.bias", shape.split(maxsplit=1)[0]),
    )


def _has_experts(config: ModelConfig, layer: int) -> bool:
    return layer % config.count("moe_every_n_layers") == 1


def _dense(config: ModelConfig, layer: int) -> bool:
    return not _has_experts(config, layer)


def _expert_metadata(config: ModelConfig) -> dict[str, Value]:
    own = {"moe_every_n_layers": u32(config.count("moe_every_n_layers"))}
    found = {key.replace(_NAME, _EXPERTS_NAME): value for key, value in _metadata(config).items()}
    return found | {f"{_EXPERTS_NAME}.{key}": value for key, value in own.items()}


def _as_stack(rows: Rows, config: ModelConfig) -> Rows:
    """HF: [experts · width, d] → [experts, width, d]."""
    shape = (config.n_experts, config.count("intermediate_size"), config.hidden)
    return ReshapedRows(rows, shape) if rows.shape == (shape[0] * shape[1], shape[2]) else rows


def _as_turned_stack(rows: Rows, config: ModelConfig) -> Rows:
    """HF: [experts · width, d] → [experts, d, width]."""
    stack = _as_stack(rows, config)
    return TransposedExperts(stack) if len(stack.shape) == 3 else stack


def _refuse_biased_experts(config: ModelConfig, source: TensorSource) -> dict[str, Value]:
    """Nothing, where the experts' bias is zero: llama.cpp's graph leaves it out."""
    for layer in range(config.n_layers):
        name = f"{_PUBLISHED.format(i=layer)}mlp.experts.bias"
        if name in source.specs and source.read_rows(name, 0, source.specs[name].rows).any():
            raise UnsupportedModelError(f"tensor '{name}' is not zero: llama.cpp's {_EXPERTS_NAME} has no such bias")
    return {}


_SPELLINGS = {
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_emb_base",
    "hidden_act": "activation_function",
}
_COMMON = (
    Requirement("rotary_emb_fraction", (1,), "its graph rotates whole heads"),
    Requirement("rotary_emb_interleaved", (False,), "its graph rotates halves of heads"),
    Requirement("prenorm", (False,), "its graph normalises after attention"),
    Requirement("causal", (False,), "its graph attends in both directions"),
    WHOLE_HEADS,
    EQUAL_HEADS,
)

FAMILY = Family(
    name=_NAME,
    classes=("NomicBertModel", "NomicBertForMaskedLM"),
    spellings=_SPELLINGS,
    defaults={
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 2048,
        "type_vocab_size": 2,
        "rope_theta": 1000.0,
    },
    metadata=_metadata,
    dimensions=_dimensions,
    backwards=Backwards(architectures=(_EXPERTS_NAME,)),
    renames=(("", "nomic_bert."),),
    instead=_second_generation,
    requirements=(
        Requirement("hidden_act", ("silu", "swish", "swiglu"), "its graph uses SiLU"),
        *(Requirement(key, (False,), "its graph has no such bias") for key in _BIASES),
        *_COMMON,
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
EXPERTS = replace(
    FAMILY,
    name=_EXPERTS_NAME,
    spellings={**_SPELLINGS, "num_experts_per_tok": "moe_top_k"},
    defaults={"layer_norm_eps": 1e-5, "type_vocab_size": 1, "rope_theta": 10000.0},
    metadata=_expert_metadata,
    stored=_refuse_biased_experts,
    requirements=(
        Requirement("hidden_act", GELU, "its graph uses GELU"),
        *(Requirement(key, (True,), "its graph has such a bias", absent_is_fine=False) for key in _BIASES),
        Requirement("moe_normalize_expert_weights", (False,), "its graph leaves the experts' weights as they are"),
        *_COMMON,
    ),
    unused=(*FAMILY.unused, r"\.mlp\.experts\.bias$"),  # zero: see `_refuse_biased_experts`
    tensors=(
        TensorRule("token_embd.weight", "embeddings.word_embeddings.weight", "v d"),
        TensorRule("token_types.weight", "embeddings.token_type_embeddings.weight", "types d"),
        *layer_norm("token_embd_norm", "emb_ln"),
        *_published_affine("attn_qkv", "attn.Wqkv", "qkv d"),
        *_published_affine("attn_output", "attn.out_proj", "d d"),
        *layer_norm("blk.{i}.attn_output_norm", _PUBLISHED + "norm1"),
        *restricted(_published_affine("ffn_up", "mlp.fc1", "ff d"), _dense),
        *restricted(_published_affine("ffn_down", "mlp.fc2", "d ff"), _dense),
        TensorRule("blk.{i}.ffn_gate_inp.weight", _PUBLISHED + "mlp.router.layer.weight", "e d", when=_has_experts),
        TensorRule(
            "blk.{i}.ffn_up_exps.weight", _PUBLISHED + "mlp.experts.mlp.w1", "e ff d", _as_stack, when=_has_experts
        ),
        TensorRule(
            "blk.{i}.ffn_down_exps.weight",
            _PUBLISHED + "mlp.experts.mlp.w2",
            "e d ff",
            _as_turned_stack,
            when=_has_experts,
        ),
        *layer_norm("blk.{i}.layer_output_norm", _PUBLISHED + "norm2"),
    ),
)
