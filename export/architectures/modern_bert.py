"""ModernBERT: rope, gated feed-forward networks, most layers through a window around each token; or a head that scores.

The head looks at the first token or at the mean of all, goes through a matrix, GELU and a norm, and then to scores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.classifier import classifier_rules, ranking_dimensions, ranking_metadata
from edgepack.export.rules.decoder import EQUAL_HEADS, GELU
from edgepack.export.rules.family import Family, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import SLIDING_OR_FULL, common_metadata, layer_kinds
from edgepack.export.rules.rope_factors import rope_number
from edgepack.gguf.types import Value, ValueType, array, boolean, f32, string, u32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings

_NAME = "modern-bert"
_LAYER = "model.layers.{i}."
_HEAD_POOLING = {"mean": 1, "cls": 2}  # enum llama_pooling_type
_PERIOD = 3  # every so many layers one attends to everything


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = {
        "attention.causal": boolean(False),
        "attention.sliding_window": u32(config.count("local_attention")),
        "attention.sliding_window_pattern": array(ValueType.BOOL, _slides(config)),
        "rope.freq_base": f32(_base(config, config.rope, "global")),
        "rope.freq_base_swa": f32(_base(config, config.sliding_rope, "local")),
        "hidden_activation": string(str(config.get("hidden_activation"))),
    }
    common = common_metadata(config, _NAME, rope_types=("default",), epsilon="norm_eps")
    return common | {f"{_NAME}.{key}": value for key, value in keys.items()}


def _slides(config: ModelConfig) -> list[bool]:
    period = config.count("global_attn_every_n_layers", default=_PERIOD)
    kinds = layer_kinds(config, SLIDING_OR_FULL, lambda layer: SLIDING_OR_FULL[layer % period == 0])
    return [kind == "sliding_attention" for kind in kinds]


def _base(config: ModelConfig, rope: Mapping[str, object], kind: str) -> float:
    """Rope's base of one kind of layer: in its own set of parameters, or beside them as it was before."""
    if rope.get("rope_type", "default") != "default":
        raise UnsupportedModelError(
            f"{config.label}: {kind} rope type is {rope['rope_type']!r}: llama.cpp needs 'default',"
            " because its graph of this architecture knows no other"
        )
    return rope_number(rope, "rope_theta", config, default=config.number(f"{kind}_rope_theta"))


def _ranking_metadata(config: ModelConfig) -> dict[str, Value]:
    pooling = u32(_HEAD_POOLING[config.get("classifier_pooling")])
    return _metadata(config) | ranking_metadata(config, _NAME) | {f"{_NAME}.classifier.pooling_type": pooling}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    standard = standard_dimensions(config)
    return standard | {"qkv": 3 * standard["d"], "gate+up": 2 * standard["ff"]}


def _ranking_dimensions(config: ModelConfig) -> dict[str, int]:
    return _dimensions(config) | ranking_dimensions(config)


def _settings(header: Header) -> Settings:
    mean = header.get("classifier.pooling_type") == _HEAD_POOLING["mean"]
    return {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": header.get("rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": header.get("rope.freq_base_swa")},
        },
        "hidden_activation": header.get("hidden_activation") or "gelu",
        "classifier_pooling": "mean" if mean else "cls",
    }


FAMILY = Family(
    name=_NAME,
    classes=("ModernBertModel", "ModernBertForMaskedLM"),
    defaults={
        "norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "local_attention": 128,
        "hidden_activation": "gelu",
        "classifier_pooling": "cls",
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    renames=(("model.", ""),),  # saved without a head
    requirements=(
        Requirement("hidden_activation", (*GELU, "silu", "swish"), "its graph uses GELU or SiLU"),
        *(Requirement(key, (False,), "its graph has no such bias") for key in ("norm_bias", "attention_bias")),
        Requirement("mlp_bias", (False,), "its graph has no such bias"),
        EQUAL_HEADS,
    ),
    unused=(r"^(head|decoder)\.",),
    tied_head=None,
    tensors=(
        TensorRule("token_embd.weight", "model.embeddings.tok_embeddings.weight", "v d"),
        TensorRule("token_embd_norm.weight", "model.embeddings.norm.weight", "d"),
        TensorRule("output_norm.weight", "model.final_norm.weight", "d"),
        # The first layer's norm is the embedding's.
        TensorRule("blk.{i}.attn_norm.weight", _LAYER + "attn_norm.weight", "d", when=lambda _config, layer: layer > 0),
        TensorRule("blk.{i}.attn_qkv.weight", _LAYER + "attn.Wqkv.weight", "qkv d"),
        TensorRule("blk.{i}.attn_output.weight", _LAYER + "attn.Wo.weight", "d d"),
        TensorRule("blk.{i}.ffn_norm.weight", _LAYER + "mlp_norm.weight", "d"),
        TensorRule("blk.{i}.ffn_up.weight", _LAYER + "mlp.Wi.weight", "gate+up d"),
        TensorRule("blk.{i}.ffn_down.weight", _LAYER + "mlp.Wo.weight", "d ff"),
    ),
)
RANKER = replace(
    FAMILY,
    classes=("ModernBertForSequenceClassification",),
    metadata=_ranking_metadata,
    dimensions=_ranking_dimensions,
    renames=(),
    requirements=(
        *FAMILY.requirements,
        Requirement("classifier_bias", (False,), "its graph has no bias in the head's first matrix"),
        Requirement("classifier_activation", GELU, "its graph's head uses GELU"),
        Requirement("classifier_pooling", tuple(_HEAD_POOLING), "its graph's head knows no other pooling"),
    ),
    unused=(r"^decoder\.",),
    tensors=(
        *FAMILY.tensors,
        TensorRule("cls.weight", "head.dense.weight", "d d"),
        TensorRule("cls.norm.weight", "head.norm.weight", "d"),
        *classifier_rules(None, "classifier"),
    ),
)

FAMILIES = (FAMILY, RANKER)
