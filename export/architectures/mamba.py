"""Mamba, Falcon Mamba and Mamba 2: mixers of state spaces alone, without attention or feed-forward networks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import SILU
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.export.rules.state_space import NO_LIMIT, mamba2_dimensions, mamba2_metadata, mamba2_rules, mamba_rules
from edgepack.gguf.types import Value, boolean, f32, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.backwards import Header, Settings

_CONTEXT = 2**20  # a state has no end; the converter's number
_WIDTH = "its graph's mixers are twice as wide as the rest"
_LAYER = "backbone.layers.{i}."


def _inner(config: ModelConfig) -> int:
    return config.count("intermediate_size", default=int(config.number("expand") * config.hidden))


def _rank(config: ModelConfig) -> int:
    """Width of the projection that makes steps; a sixteenth of the hidden size where it is `auto`."""
    if config.get("time_step_rank") in (None, "auto"):
        return -(-config.hidden // 16)
    return config.count("time_step_rank")


def _common(config: ModelConfig, sizes: dict[str, Value], name: str) -> dict[str, Value]:
    keys: dict[str, Value] = {
        "block_count": u32(config.n_layers),
        "context_length": u32(_CONTEXT),
        "embedding_length": u32(config.hidden),
        "feed_forward_length": u32(0),
        "attention.head_count": u32(0),
        "attention.layer_norm_rms_epsilon": f32(config.number("layer_norm_epsilon")),
        "vocab_size": u32(config.vocab_size),
        **sizes,
    }
    return {f"{name}.{key}": value for key, value in keys.items()}


def _metadata(config: ModelConfig) -> dict[str, Value]:
    sizes: dict[str, Value] = {
        "ssm.conv_kernel": u32(config.count("conv_kernel")),
        "ssm.inner_size": u32(_inner(config)),
        "ssm.state_size": u32(config.count("state_size")),
        "ssm.time_step_rank": u32(_rank(config)),
    }
    return _common(config, sizes, "mamba")


def _dimensions(config: ModelConfig) -> dict[str, int]:
    inner, state, rank = _inner(config), config.count("state_size"), _rank(config)
    return {
        "d": config.hidden,
        "v": config.vocab_size,
        "si": inner,
        "2si": 2 * inner,
        "sk": config.count("conv_kernel"),
        "sn": state,
        "sr": rank,
        "sr+2sn": rank + 2 * state,
    }


def _groups(config: ModelConfig) -> int:
    return config.count("n_groups")


def _mixer(config: ModelConfig) -> dict[str, int]:
    heads, width = config.count("num_heads"), config.count("head_dim")
    inner = int(config.number("expand") * config.hidden)
    if heads * width != inner or inner % _groups(config):
        raise CheckpointError(f"{config.label}: {heads} heads of {width} do not make {inner} channels in groups")
    return {
        "kernel": config.count("conv_kernel"),
        "state": config.count("state_size"),
        "heads": heads,
        "groups": _groups(config),
        "inner": inner,
    }


def _metadata_2(config: ModelConfig) -> dict[str, Value]:
    return _common(config, mamba2_metadata(**_mixer(config)), "mamba2")


def _dimensions_2(config: ModelConfig) -> dict[str, int]:
    return {"d": config.hidden, "v": config.vocab_size} | mamba2_dimensions(**_mixer(config))


_AROUND = (
    TensorRule("token_embd.weight", "backbone.embeddings.weight", "v d"),
    TensorRule("output_norm.weight", "backbone.norm_f.weight", "d"),
    TensorRule("output.weight", "lm_head.weight", "v d"),
    TensorRule("blk.{i}.attn_norm.weight", _LAYER + "norm.weight", "d"),
)
_DEFAULTS = {"layer_norm_epsilon": 1e-5, "conv_kernel": 4, "expand": 2, "use_conv_bias": True}


def _settings(header: Header) -> Settings:
    return {"intermediate_size": header.count("ssm.inner_size"), "expand": 2}


def _second_settings(header: Header) -> Settings:
    inner, heads = header.count("ssm.inner_size"), header.count("ssm.time_step_rank")
    return {
        "expand": inner // max(1, header.count("embedding_length")),
        "num_heads": heads,
        "head_dim": inner // max(1, heads),
    }


FIRST = Family(
    name="mamba",
    classes=("MambaForCausalLM",),
    defaults={**_DEFAULTS, "state_size": 16, "tie_word_embeddings": True},
    metadata=_metadata,
    backwards=Backwards(_settings),
    dimensions=_dimensions,
    renames=(("backbone.embeddings.", "backbone.embedding."),),
    requirements=(
        SILU,
        Requirement("expand", (2,), _WIDTH),
        Requirement("intermediate_size", lambda config: (2 * config.hidden,), _WIDTH),
        Requirement("use_bias", (False,), "its graph has no biases around the mixer"),
        Requirement("use_conv_bias", (True,), "its graph adds a bias after the convolution"),
    ),
    tensors=(*_AROUND, *mamba_rules(_LAYER + "mixer.")),
)


def _falcon_metadata(config: ModelConfig) -> dict[str, Value]:
    return _metadata(config) | {"mamba.ssm.dt_b_c_rms": boolean(True)}


def _falcon_remarks(config: ModelConfig) -> tuple[str, ...]:
    """llama.cpp has one epsilon for all norms."""
    ours, theirs = config.number("layer_norm_epsilon"), config.number("mixer_rms_eps")
    if ours == theirs:
        return ()
    return (f"norms of steps, B and C: llama.cpp takes layer_norm_epsilon ({ours:g}), transformers {theirs:g}",)


def _falcon_settings(header: Header) -> Settings:
    epsilon = header.get("attention.layer_norm_rms_epsilon")
    return {"intermediate_size": header.count("ssm.inner_size"), "mixer_rms_eps": epsilon}


FALCON = replace(
    FIRST,
    classes=("FalconMambaForCausalLM",),
    defaults={**FIRST.defaults, "mixer_rms_eps": 1e-6},
    metadata=_falcon_metadata,
    backwards=Backwards(_falcon_settings),
    remarks=_falcon_remarks,
    requirements=tuple(each for each in FIRST.requirements if each.key != "expand"),  # the width is said
)
SECOND = replace(
    FIRST,
    name="mamba2",
    classes=("Mamba2ForCausalLM",),
    defaults={**_DEFAULTS, "state_size": 128, "n_groups": 8, "num_heads": 128, "head_dim": 64},
    metadata=_metadata_2,
    backwards=Backwards(_second_settings),
    dimensions=_dimensions_2,
    renames=(*FIRST.renames, ("backbone.", "model.backbone."), ("lm_head.", "model.lm_head.")),
    requirements=(
        SILU,
        Requirement("use_bias", (False,), "its graph has no biases around the mixer"),
        Requirement("use_conv_bias", (True,), "its graph adds a bias after the convolution"),
        NO_LIMIT,
    ),
    tensors=(*_AROUND, *mamba2_rules(_LAYER + "mixer.", _groups)),
)
FAMILIES = (FIRST, FALCON, SECOND)
