"""Jina's embeddings 3: RoBERTa with rope in place of learnt positions, and adapters for its tasks, which are left out.

There are three spellings: as it was published (where it calls itself XLM-RoBERTa), as it was published anew for
transformers 5, and as transformers 5 holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import EQUAL_HEADS, GELU, WHOLE_HEADS
from edgepack.export.rules.encoder import encoder_dimensions, encoder_metadata
from edgepack.export.rules.family import Family, Origin, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value

_NAME = "jina-bert-v3"
_HELD, _PUBLISHED = "layers.{i}.", "encoder.layers.{i}."


def _metadata(config: ModelConfig) -> dict[str, Value]:
    common = common_metadata(config, _NAME, rope_types=("default",), epsilon="layer_norm_eps")
    return common | encoder_metadata(config, _NAME)


def _dimensions(config: ModelConfig) -> dict[str, int]:
    return encoder_dimensions(config) | {"qkv": 3 * config.hidden}


def _remarks(config: ModelConfig) -> tuple[str, ...]:
    tasks = config.get("lora_adaptations")
    return (f"{len(tasks)} adapters for tasks are left out",) if isinstance(tasks, list) and tasks else ()


def _rule(target: str, held: str | tuple[str, ...], published: str, shape: str) -> TensorRule:
    """A tensor with a name of each spelling; what has adapters is called `parametrizations` in the first."""
    name, _, kind = published.rpartition(".")
    origins = (Origin(published), Origin(f"{name}.parametrizations.{kind}.original"))
    return TensorRule(target, held, shape, alternatives=origins)


def _affine(target: str, held: str, published: str, shape: str) -> tuple[TensorRule, ...]:
    return tuple(
        _rule(
            f"blk.{{i}}.{target}.{kind}",
            tuple(f"{_HELD}{held.format(part)}.{kind}" for part in "qkv") if "{}" in held else f"{_HELD}{held}.{kind}",
            f"{_PUBLISHED}{published}.{kind}",
            shape if kind == "weight" else shape.split(maxsplit=1)[0],
        )
        for kind in ("weight", "bias")
    )


def _norm(target: str, held: str, published: str) -> tuple[TensorRule, ...]:
    return tuple(_rule(f"{target}.{kind}", f"{held}.{kind}", f"{published}.{kind}", "d") for kind in ("weight", "bias"))


FAMILY = Family(
    name=_NAME,
    classes=("JinaEmbeddingsV3Model", "JinaEmbeddingsV3ForMaskedLM"),  # and of `roberta` what has adapters
    spellings={"rope_theta": "rotary_emb_base"},
    defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8194,
        "type_vocab_size": 1,
        "rope_theta": 20000.0,
    },
    metadata=_metadata,
    dimensions=_dimensions,
    remarks=_remarks,
    renames=(("", "roberta."),),
    requirements=(
        Requirement("hidden_act", GELU, "its graph uses GELU"),
        Requirement("position_embedding_type", ("rotary",), "its graph has rope"),
        WHOLE_HEADS,
        EQUAL_HEADS,
    ),
    unused=(r"(^|\.)pooler\.", r"^lm_head\.", r"\.lora_[AB]$"),
    tied_head=None,
    tensors=(
        _rule("token_embd.weight", "embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight", "v d"),
        _rule(
            "token_types.weight",
            "embeddings.token_type_embeddings.weight",
            "embeddings.token_type_embeddings.weight",
            "types d",
        ),
        *_norm("token_embd_norm", "embeddings.LayerNorm", "emb_ln"),
        *_affine("attn_qkv", "self_attn.{}_proj", "mixer.Wqkv", "qkv d"),
        *_affine("attn_output", "self_attn.o_proj", "mixer.out_proj", "d d"),
        *_norm("blk.{i}.attn_output_norm", _HELD + "post_attention_layernorm", _PUBLISHED + "norm1"),
        *_affine("ffn_up", "mlp.fc1", "mlp.fc1", "ff d"),
        *_affine("ffn_down", "mlp.fc2", "mlp.fc2", "d ff"),
        *_norm("blk.{i}.layer_output_norm", _HELD + "post_mlp_layernorm", _PUBLISHED + "norm2"),
    ),
)
