"""What llama.cpp's graphs cannot honour is refused by the name of the setting; broken configurations in one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_checkpoint import LlamaShape, SyntheticTensors, bf16_specs

from edgepack.errors import CheckpointError, EdgepackError, UnsupportedModelError
from edgepack.export.config import ModelConfig
from edgepack.export.rules.mapping import completed, find_family, map_tensors

if TYPE_CHECKING:
    from edgepack.gguf.types import Value

CONFIGS = {
    name.rpartition("/")[2]: entry["config"]
    for name, entry in json.loads((ROOT / "tests/data/published_configs.json").read_text()).items()
}
LLAMA, QWEN2, QWEN3 = "Llama-3.2-1B", "Qwen2.5-0.5B", "Qwen3-0.6B"
QWEN2_MOE, QWEN3_MOE, GEMMA2, GEMMA3 = "Qwen1.5-MoE-A2.7B", "Qwen3-30B-A3B", "gemma-2-2b", "gemma-3-1b-it"
PHI, GLM, GPT2, PYTHIA, SMOLLM = "Phi-4-mini-instruct", "GLM-4.5-Air", "gpt2", "pythia-70m", "SmolLM3-3B"
GRANITE, OLMO, STARCODER, BERT = "granite-3.3-2b-instruct", "OLMo-2-0425-1B", "starcoder2-3b", "all-MiniLM-L6-v2"

OSS, LFM, MAMBA, GEMMA, NEXT, JAMBA = (
    "gpt-oss-20b", "LFM2-1.2B", "mamba-130m-hf", "gemma-2b", "Qwen3-Next-80B-A3B-Instruct", "Jamba-v0.1"
)  # fmt: skip


def metadata_of(config: dict[str, Any]) -> dict[str, Value]:
    published = ModelConfig(config)
    family = find_family(published)
    return family.metadata(completed(published, family))


def computed_of(config: dict[str, Any]) -> set[str]:
    """Everything that is made of the configuration alone."""
    published = ModelConfig(config)
    family = find_family(published)
    complete = completed(published, family)
    return {*family.metadata(complete), *family.computed(complete), *family.dimensions(complete)}


REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (LLAMA, {"num_hidden_layers": 513}, "513 layers: llama.cpp holds at most 512"),
    (QWEN3_MOE, {"num_experts": 10**6}, "1000000 experts: llama.cpp holds at most"),
    (LLAMA, {"head_dim": 63}, "heads of even width, got 63"),
    (LLAMA, {"rope_scaling": {"type": "longrope"}}, "rope type is 'longrope'"),
    (LLAMA, {"rope_scaling": {"rope_type": "ntk-by-parts"}}, "rope type is 'ntk-by-parts'"),
    (QWEN2, {"rope_scaling": {"rope_type": "llama3"}}, "rope type is 'llama3'"),
    (QWEN2, {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 16}}, "rope_parameters.beta_fast is 16"),
    (QWEN2, {"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}}, "rope_parameters.truncate is False"),
    (QWEN2, {"head_dim": 128}, "head_dim is 128"),
    (QWEN2_MOE, {"norm_topk_prob": True}, "norm_topk_prob is True"),
    (QWEN2_MOE, {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]"),
    (QWEN3, {"attention_bias": True}, "attention_bias is True"),
    (QWEN3_MOE, {"norm_topk_prob": False}, "norm_topk_prob is False"),
    (QWEN3_MOE, {"norm_topk_prob": None}, "norm_topk_prob is None"),
    (QWEN3_MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    (GEMMA2, {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar is 224"),
    (GEMMA2, {"attn_logit_softcapping": None}, "attn_logit_softcapping is None"),
    (GEMMA2, {"final_logit_softcapping": None}, "final_logit_softcapping is None"),
    (GEMMA2, {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
    (GEMMA2, {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    (GEMMA3, {"layer_types": ["chunked_attention"] * 26}, "layer_types: .* got 'chunked_attention'"),
    (
        GEMMA3,
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "rope_parameters.sliding_attention.rope_type is 'linear'",
    ),
    (OSS, {"swiglu_limit": 5.0}, "swiglu_limit is 5.0"),
    (OSS, {"attention_bias": False}, "attention_bias is False"),
    (LFM, {"conv_bias": True}, "conv_bias is True"),
    (LFM, {"layer_types": ["conv"] * 15 + ["mamba"]}, "layer_types: expected full or conv, got 'mamba'"),
    (MAMBA, {"expand": 3, "intermediate_size": 2304}, "expand is 3"),
    (MAMBA, {"intermediate_size": 2304}, "intermediate_size is 2304: llama.cpp needs 1536"),
    (MAMBA, {"use_bias": True}, "use_bias is True"),
    (GEMMA, {"hidden_act": "silu"}, "hidden_activation is 'silu'"),
    (GEMMA, {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    (NEXT, {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
    (NEXT, {"linear_value_head_dim": 64}, "linear_value_head_dim is 64: llama.cpp needs 128"),
    (NEXT, {"mtp_num_hidden_layers": 2}, "2 layers of prediction: llama.cpp holds at most 1"),
    (JAMBA, {"mamba_expand": 4}, "mamba_expand is 4"),
    (PHI, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type is 'yarn'"),
    (PHI, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    (GLM, {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    (GPT2, {"activation_function": "relu"}, "activation_function is 'relu'"),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    (PYTHIA, {"attention_bias": False}, "attention_bias is False"),
    (PYTHIA, {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    (SMOLLM, {"no_rope_layers": [1] * 36}, r"no_rope_layers is \[1, 1"),
    (SMOLLM, {"no_rope_layers": None, "no_rope_layer_interval": 6}, "no_rope_layer_interval is 6"),
    (SMOLLM, {"mlp_bias": True}, "mlp_bias is True"),
    (GRANITE, {"attention_multiplier": 0.0}, "attention_multiplier is 0.0"),
    (OLMO, {"attention_bias": True}, "attention_bias is True"),
    (STARCODER, {"use_bias": False}, "use_bias is False"),
    (STARCODER, {"norm_type": "rms_norm"}, "norm_type is 'rms_norm'"),
    (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    (BERT, {"is_decoder": True}, "is_decoder is True"),
)


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_setting_that_the_graph_cannot_honour_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str
) -> None:
    assert metadata_of(CONFIGS[name])
    with pytest.raises(UnsupportedModelError, match=message) as refusal:
        metadata_of(CONFIGS[name] | changes)
    assert "\n" not in str(refusal.value)


BROKEN: tuple[tuple[str, dict[str, Any], str], ...] = (
    (LLAMA, {"num_hidden_layers": None}, "expected key 'num_hidden_layers', found none"),
    (LLAMA, {"num_key_value_heads": 5}, "32 query heads are not a multiple of 5 key-value heads"),
    (LLAMA, {"num_attention_heads": 24, "head_dim": None}, "hidden_size 2048 is not a multiple of 24 heads"),
    (LLAMA, {"rope_scaling": [8.0]}, "rope_scaling: expected an object"),
    (LLAMA, {"rope_scaling": {"rope_type": "linear"}}, "rope_parameters.factor: expected a positive number, got None"),
    (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_parameters.factor: .* got 0"),
    (LLAMA, {"rope_theta": "10000"}, "rope_theta: expected a positive number, got '10000'"),
    (QWEN3_MOE, {"num_experts_per_tok": "8"}, "num_experts_per_tok: expected a positive integer, got '8'"),
    (GEMMA3, {"layer_types": ["full_attention"]}, "layer_types: expected a list of 26"),
    (PHI, {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "long_factor: expected a list of 48 numbers"),
    (PHI, {"partial_rotary_factor": 1.5}, "partial_rotary_factor: expected a number up to 1"),
)


@pytest.mark.parametrize(("name", "changes", "message"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_broken_configuration_names_its_key(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        computed_of(CONFIGS[name] | changes)


TINY = LlamaShape(hidden=64, layers=1, feed_forward=96, heads=4, kv_heads=2, vocabulary=100)


def mapped(shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> set[str]:
    given_config = ModelConfig(config)
    family = find_family(given_config)
    return set(map_tensors(family, completed(given_config, family), SyntheticTensors(bf16_specs(shapes))))


def shapes_of(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in shape.specs().items()}


def test_a_head_that_is_tied_is_left_out_even_where_the_checkpoint_has_it() -> None:
    names = mapped(shapes_of(TINY) | {"lm_head.weight": (100, 64)}, TINY.config())
    assert "output.weight" not in names


def test_an_untied_model_without_head_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint lacks tensor 'lm_head.weight', which llama needs"):
        mapped(shapes_of(TINY), TINY.config() | {"tie_word_embeddings": False})


def test_buffers_of_old_checkpoints_are_passed_over() -> None:
    shapes = shapes_of(TINY)
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}
    assert mapped(shapes | buffers, TINY.config()) == mapped(shapes, TINY.config())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (64, 65)),
        ("model.layers.0.self_attn.k_proj.weight", (64, 64)),
        ("model.layers.0.mlp.gate_proj.weight", (96,)),
        ("model.norm.weight", (1, 64)),
        ("model.embed_tokens.weight", (0, 64)),
    ],
)
def test_a_shape_that_contradicts_the_configuration_names_both(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=f"tensor '{name}': config.json makes .* the checkpoint gives"):
        mapped(shapes_of(TINY) | {name: shape}, TINY.config())


def test_experts_of_unequal_shape_or_number_are_refused() -> None:
    config = {**CONFIGS[QWEN3_MOE], "num_hidden_layers": 1, "num_experts": 2, "vocab_size": 10}
    config |= {"hidden_size": 8, "head_dim": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
    config |= {"moe_intermediate_size": 6}
    layer = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (10, 8), "lm_head.weight": (10, 8)}
    shapes |= {"model.norm.weight": (8,), f"{layer}mlp.gate.weight": (2, 8)}
    shapes |= {f"{layer}{norm}_layernorm.weight": (8,) for norm in ("input", "post_attention")}
    shapes |= {f"{layer}self_attn.{part}_norm.weight": (4,) for part in "qk"}
    shapes |= {
        f"{layer}self_attn.{part}_proj.weight": (rows, 8) for part, rows in (("q", 8), ("k", 4), ("v", 4), ("o", 8))
    }
    experts = {f"{layer}mlp.experts.{e}.{part}_proj.weight": (6, 8) for e in range(2) for part in ("gate", "up")}
    experts |= {f"{layer}mlp.experts.{e}.down_proj.weight": (8, 6) for e in range(2)}
    assert "blk.0.ffn_gate_exps.weight" in mapped(shapes | experts, config)
    uneven = experts | {f"{layer}mlp.experts.1.up_proj.weight": (5, 8)}
    with pytest.raises(CheckpointError, match=r"experts.0.up_proj.weight': config.json makes"):
        mapped(shapes | uneven, config)
    lacking = {name: shape for name, shape in experts.items() if ".1.down" not in name}
    with pytest.raises(CheckpointError, match=r"lacks tensor '.*experts.1.down_proj.weight'"):
        mapped(shapes | lacking, config)
    fused: dict[str, tuple[int, ...]] = {f"{layer}mlp.experts.gate_up_proj": (2, 12, 8)}
    assert mapped(shapes | fused | {f"{layer}mlp.experts.down_proj": (2, 8, 6)}, config) == mapped(
        shapes | experts, config
    )
    with pytest.raises(CheckpointError, match="gate_up_proj: expected"):
        mapped(shapes | {f"{layer}mlp.experts.gate_up_proj": (2, 11, 8)}, config)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_value_under_any_key_is_taken_or_refused_in_one_line(data: st.DataObject) -> None:
    config = CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))]
    key = data.draw(st.sampled_from(sorted({*config, "rope_parameters", "layer_types", "num_mtp_layers"})))
    try:
        found = computed_of(config | {key: data.draw(json_values)})
    except EdgepackError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert found
