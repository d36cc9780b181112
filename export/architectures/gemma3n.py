"""Gemma 3n, the text part: four alternating streams, embeddings by layer, sparse first layers, shared keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.export.architectures.gemma2 import NORMS
from edgepack.export.architectures.gemma3 import sliding_rope_base
from edgepack.export.rows import ArrayRows
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import (
    GELU,
    LAYER,
    NO_ATTENTION_BIAS,
    WHOLE_HEADS,
    attention_rules,
    embedding_rules,
    feed_forward_rules,
    head_norm_rules,
    norm_rules,
    restricted,
)
from edgepack.export.rules.family import BUFFERS, Family, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import SLIDING_OR_FULL, common_metadata, layer_kinds, sliding_metadata
from edgepack.export.rules.per_layer import (
    PER_LAYER_RULES,
    has_keys,
    n_shared,
    per_layer_dimensions,
    shares_as_llama_cpp,
    shares_keys,
)
from edgepack.gguf.types import Value, f32, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.backwards import Header, Settings

_WITH_KEYS = 20  # layers with keys and values of their own, as llama.cpp's gemma3n.cpp has it
_SPARSE = [0.95] * 10  # of the first layers, as its class says (models.h)
_STREAMS = 4


def _uniform(config: ModelConfig) -> dict[str, Any]:
    """One inner width where the configuration has a list of equal ones."""
    width = config.get("intermediate_size")
    uniform = isinstance(width, list) and width and width == [width[0]] * config.n_layers
    return {"intermediate_size": width[0]} if uniform else {}


def _width(config: ModelConfig) -> tuple[Any, ...]:
    width = config.get("intermediate_size")
    return ("the same for every layer",) if isinstance(width, list) else (width,)


def _kinds(config: ModelConfig) -> list[str]:
    return layer_kinds(config, SLIDING_OR_FULL, lambda layer: SLIDING_OR_FULL[(layer + 1) % 5 == 0])


def _sharable(config: ModelConfig) -> tuple[Any, ...]:
    shared = max(0, config.n_layers - _WITH_KEYS)
    if n_shared(config) == shared and not shares_as_llama_cpp(config, _kinds(config)):
        return ("layers before that end in a sliding and a full one",)
    return (shared,) if shared else (0, None)


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys: dict[str, Value] = {
        **sliding_metadata(config, 5),
        "attention.shared_kv_layers": u32(n_shared(config)),
        "embedding_length_per_layer_input": u32(config.count("hidden_size_per_layer_input")),
        "rope.freq_base_swa": f32(sliding_rope_base(config)),
        "altup.active_idx": u32(0),
        "altup.num_inputs": u32(_STREAMS),
    }
    return common_metadata(config, "gemma3n", rope_types=("default", "linear")) | {
        f"gemma3n.{key}": value for key, value in keys.items()
    }


def _dimensions(config: ModelConfig) -> dict[str, int]:
    sizes = {"laurel": config.count("laurel_rank"), "a": _STREAMS, "aa": _STREAMS**2, "others": _STREAMS - 1}
    return standard_dimensions(config) | per_layer_dimensions(config) | sizes


def _absent_keys(config: ModelConfig) -> dict[str, Rows]:
    """Keys and values that llama.cpp wants in the file and never reads; transformers 5 does not write them."""
    head, width = config.head_dim, config.n_kv_heads * config.head_dim
    zeros = {"attn_k": (width, config.hidden), "attn_v": (width, config.hidden), "attn_k_norm": (head,)}
    return {
        f"blk.{layer}.{name}.weight": ArrayRows(np.broadcast_to(np.float32(0), shape))
        for layer in range(config.n_layers)
        if shares_keys(config, layer)
        for name, shape in zeros.items()
    }


def _attention() -> tuple[TensorRule, ...]:
    """K and v are optional where a layer shares those of another."""
    rules: list[TensorRule] = []
    for rule in (*attention_rules(bias=False), *head_norm_rules()):
        if rule.target.removeprefix("blk.{i}.attn_")[0] in "kv":
            rules += restricted([rule], has_keys)
            rules += restricted([replace(rule, optional=True)], shares_keys)
        else:
            rules.append(rule)
    return tuple(rules)


def _streams(name: str, target: str) -> TensorRule:
    sources = tuple(f"model.{name}.{stream}.weight" for stream in range(_STREAMS - 1))
    return TensorRule(f"{target}.weight", sources, "others d d", stacked=True)


_ALTERNATING = (
    TensorRule("blk.{i}.altup_correct_coef.weight", LAYER + "altup.correction_coefs.weight", "a a"),
    TensorRule("blk.{i}.altup_correct_scale.weight", LAYER + "altup.correct_output_scale", "d"),
    TensorRule("blk.{i}.altup_predict_coef.weight", LAYER + "altup.prediction_coefs.weight", "aa a"),
    TensorRule("blk.{i}.altup_router.weight", LAYER + "altup.modality_router.weight", "a d"),
    TensorRule("blk.{i}.laurel_l.weight", LAYER + "laurel.linear_left.weight", "laurel d"),
    TensorRule("blk.{i}.laurel_r.weight", LAYER + "laurel.linear_right.weight", "d laurel"),
    *norm_rules({"altup_router_norm": "altup.router_norm", "laurel_post_norm": "laurel.post_laurel_norm"}),
)


def _settings(header: Header) -> Settings:
    layers = header.count("block_count")
    return {
        "vocab_size_per_layer_input": header.shapes["per_layer_token_embd.weight"][0],
        "activation_sparsity_pattern": [*_SPARSE, *[0.0] * layers][:layers],
        "num_kv_shared_layers": header.count("attention.shared_kv_layers"),
    }


TEXT = Family(
    name="gemma3n",
    classes=("Gemma3nForCausalLM",),
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "intermediate_size": 16384,
        "vocab_size": 262400,
        "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": 15,
        "laurel_rank": 64,
    },
    metadata=_metadata,
    backwards=Backwards(_settings),
    derived=_uniform,
    dimensions=_dimensions,
    computed=_absent_keys,
    requirements=(
        Requirement(("hidden_activation", "hidden_act"), GELU, "its graph uses GELU"),
        WHOLE_HEADS,
        NO_ATTENTION_BIAS,
        Requirement("intermediate_size", _width, "its graph has one inner width"),
        Requirement("final_logit_softcapping", (30.0,), "its graph caps logits there"),
        Requirement("altup_num_inputs", (_STREAMS,), "its graph has as many streams"),
        Requirement("altup_active_idx", (0,), "its graph runs layers on the first stream"),
        Requirement("altup_correct_scale", (True,), "its graph scales the first stream"),
        Requirement("laurel_rank", (64,), "its graph has that rank"),
        Requirement("hidden_size_per_layer_input", (256,), "its graph has that width"),
        Requirement("use_bidirectional_attention", (False,), "its graph is causal"),
        Requirement(
            "activation_sparsity_pattern",
            lambda config: ([*_SPARSE, *[0.0] * (config.n_layers - len(_SPARSE))][: config.n_layers],),
            "its graph keeps the largest twentieth of the first ten layers",
        ),
        Requirement("num_kv_shared_layers", _sharable, f"its graph shares the keys of {_WITH_KEYS} layers"),
    ),
    tensors=(
        *embedding_rules(),
        *norm_rules(NORMS),
        *_attention(),
        *feed_forward_rules(),
        *PER_LAYER_RULES,
        *_ALTERNATING,
        _streams("altup_projections", "altup_proj"),
        _streams("altup_unembed_projections", "altup_unembd_proj"),
    ),
)
MULTIMODAL = replace(
    TEXT,
    classes=("Gemma3nForConditionalGeneration",),
    nested=True,
    renames=(("model.", "model.language_model."),),
    unused=(*BUFFERS, r"^model\.(vision_tower|audio_tower|embed_vision|embed_audio)\."),
)
FAMILIES = (TEXT, MULTIMODAL)
