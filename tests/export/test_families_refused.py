"""Settings of the tiny models' families that llama.cpp's graphs do not honour are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from references.tiny_decoders import DECODERS
from references.tiny_encoders import EMBEDDERS, RANKERS

from edgepack.errors import EdgepackError
from edgepack.export.config import ModelConfig
from edgepack.export.rules.mapping import completed, find_family

# (tiny model of test_architectures, settings, message)
REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("mistral-small-3", {"model_type": "mistral4"}, "text_config.model_type is 'mistral4'"),
    ("qwen-2.5-vl", {"rms_norm_eps": 1e-4}, "rms_norm_eps is 0.0001"),
    ("qwen-2.5-vl", {"mrope_section": [2, 3, 2]}, r"mrope_section is \[2, 3, 2\]"),
    ("qwen-3-vl", {"mrope_section": [6, 5, 4]}, r"mrope_section is \[6, 5, 4\]"),
    ("roberta", {"pad_token_id": None}, "pad_token_id: expected a token below 257, got None"),
    ("embedding-gemma", {"use_bidirectional_attention": False}, "use_bidirectional_attention is False"),
    ("embedding-gemma", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64"),
    ("embedding-gemma", {"layer_types": ["full_attention"] * 7}, "no layer slides"),
    ("modern-bert", {"norm_bias": True}, "norm_bias is True"),
    ("modern-bert", {"rope_type": "linear"}, "rope type is 'linear'"),
    ("modern-bert-ranker", {"classifier_bias": True}, "classifier_bias is True"),
    ("nomic-bert", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("jina-3", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("deepseek-2", {"topk_method": "group_limited_greedy"}, "topk_method is 'group_limited_greedy'"),
    ("deepseek-2", {"num_hidden_layers": 27}, "q_lora_rank with 27 layers"),
    ("deepseek-3", {"attention_bias": True}, "attention_bias is True"),
    ("glm-4.7-flash", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "dense layers first"),
    ("glm-4.7-flash", {"mlp_layer_types": ["sparse"]}, "mlp_layer_types: expected a list of 3"),
    ("olmo-3-yarn", {"sliding_attention": {"rope_theta": 5e5}}, "rope_parameters.sliding_attention is"),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0"),
    ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
    ("exaone-4", {"sliding_window": 16}, "sliding_window is 16 with 2 layers"),
    ("exaone-4-32b", {"sliding_window": None}, "sliding_window is None with 64 layers"),
    ("exaone-4-32b", {"layer_types": None, "sliding_window_pattern": "LLLX"}, "expected letters L and G"),
    ("hunyuan-moe-fused", {"moe_topk": [3, 2]}, r"moe_topk is \[3, 2\]"),
    ("ernie-4.5", {"use_bias": True}, "use_bias is True"),
    ("ernie-4.5-moe", {"moe_layer_interval": 2}, "moe_layer_interval is 2"),
    ("ernie-4.5-moe", {"moe_layer_end_index": 1}, "moe_layer_end_index is 1"),
    ("cohere-2", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ("seed-oss", {"mlp_bias": True}, "mlp_bias is True"),
    ("phi-2", {"architectures": ["PhimoeForCausalLM"]}, "PhimoeForCausalLM: .* sparse mixer"),
    ("phi-2", {"qk_layernorm": True}, "qk_layernorm is True"),
    ("apertus", {"hidden_act": "silu"}, "hidden_act is 'silu'"),
    ("arcee", {"mlp_bias": True}, "mlp_bias is True"),
    ("nemotron", {"hidden_act": "silu"}, "hidden_act is 'silu'"),
    ("llama-4", {"attention_chunk_size": 4096}, "attention_chunk_size is 4096"),
    ("llama-4", {"no_rope_layers": [1, 1, 1, 1, 1]}, "no_rope_layers is"),
    ("llama-4", {"layer_types": ["full_attention"] * 5}, "layer_types is"),
    ("llama-4", {"moe_layers": [0]}, r"moe_layers is \[0\]"),
    ("llama-4", {"use_qk_norm": False}, "use_qk_norm is False"),
    ("minicpm-3", {"scale_emb": 1}, "scale_emb is 1"),
    ("falcon-7b", {"alibi": True}, "alibi is True"),
    ("falcon-7b", {"parallel_attn": False}, "parallel_attn is False"),
    ("bitnet", {"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
    ("bitnet", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ("bert-ranker", {"id2label": {"1": "yes"}}, "id2label: expected names by number"),
    ("qwen-3-vl", {"vision_config": {"deepstack_visual_indexes": 1}}, "expected a list, got 1"),
)


def metadata_of(config: dict[str, Any]) -> object:
    published = ModelConfig(config)
    family = find_family(published)
    return family.metadata(completed(published, family))


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its keys replaced, wherever they stand."""
    found = {key: changed(value, changes) if isinstance(value, dict) else value for key, value in config.items()}
    return {key: changes.get(key, value) for key, value in found.items()}


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_setting_that_the_graph_cannot_honour_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str
) -> None:
    tiny = next(tiny for tiny in (*DECODERS, *EMBEDDERS, *RANKERS) if tiny.name == name)
    config = json.loads(tiny.configuration().to_json_string(use_diff=False)) | {
        "architectures": [tiny.family + tiny.head]
    }
    assert metadata_of(config)
    with pytest.raises(EdgepackError, match=message) as refusal:
        metadata_of(changed(config, changes))
    assert "\n" not in str(refusal.value)
