"""Keys of config.json from a GGUF's metadata: the table that most families share; what differs is the families' data.

Rope is `export.backwards.rope`'s. Whether the configuration says what the file says is found out afterwards, by making
the metadata anew (`export.backwards.agreement`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgepack.export.rules.backwards import Header

# Key of the metadata → spellings in config.json, of which the first that the model's class knows is set.
_SHARED: dict[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers",),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window", "local_attention"),
    "attention.q_lora_rank": ("q_lora_rank",),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "attention.scale": ("attention_multiplier",),
    "attention.shared_kv_layers": ("num_kv_shared_layers",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "embedding_length_per_layer_input": ("hidden_size_per_layer_input",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "expert_used_count": ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": (
        "shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size",
    ),
    "expert_shared_count": ("n_shared_experts",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "leading_dense_block_count": ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
    "interleave_moe_layer_step": ("interleave_moe_layer_step",),
    "shortconv.l_cache": ("conv_L_cache",),
    "ssm.conv_kernel": ("mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim"),
    "ssm.state_size": ("mamba_d_state", "state_size", "ssm_state_size", "linear_key_head_dim"),
    "ssm.group_count": ("mamba_n_groups", "n_groups", "linear_num_key_heads"),
    "ssm.time_step_rank": (
        "mamba_n_heads", "mamba_num_heads", "num_heads", "mamba_dt_rank", "time_step_rank", "linear_num_value_heads",
    ),
    "rope.scaling.original_context_length": ("original_max_position_embeddings",),
    "vocab_size": ("vocab_size",),
}  # fmt: skip
_SLIDING = ("full_attention", "sliding_attention")
# Whether there is such a tensor in a layer: settings that switch it.
_SWITCHES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((".attn_q.bias", ".attn_qkv.bias"), ("attention_bias", "qkv_bias", "use_qkv_bias")),
    ((".attn_output.bias",), ("attention_out_bias",)),
    ((".ffn_up.bias", ".ffn_down.bias"), ("mlp_bias",)),
    ((".attn_q_norm.weight",), ("use_qk_norm", "qk_layernorm")),
)


# Of config.json → as GGUF calls them; llama.cpp's own spelling of the fourth.
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "sep": "seperator", "cls": "cls", "mask": "mask"}


def shared_settings(header: Header, known: Collection[str]) -> dict[str, Any]:
    """What the shared keys say.

    Args:
        header: of the GGUF.
        known: the settings that the model's class has.
    """
    found = _from_keys(header, known) | _from_tensors(header, known)
    slides = header.flags("attention.sliding_window_pattern")
    if slides and "layer_types" in known:
        found["layer_types"] = [_SLIDING[each] for each in slides]
    if "sliding_window" in known:
        found.setdefault("sliding_window", None)
    for role, ours in _ROLES.items():  # the class's own may lie beyond the vocabulary
        token = header.metadata.get(f"tokenizer.ggml.{ours}_token_id")
        if token is not None or f"{role}_token_id" in known:
            found[f"{role}_token_id"] = None if token is None else token.value
    labels = header.get("classifier.output_labels")
    return found | ({"id2label": dict(enumerate(labels))} if labels else {})


def _from_keys(header: Header, known: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, names in _SHARED.items():
        value, name = header.get(key), next((each for each in names if each in known), None)
        if isinstance(value, list):  # layers without attention, or without such a network, have 0
            kinds = {each for each in value if each}
            value = kinds.pop() if len(kinds) == 1 else None
        if value is not None and name is not None:
            found[name] = value
    if header.get("attention.key_length") not in (None, header.even_width):
        found["head_dim"] = header.get("attention.key_length")
    return found


def _from_tensors(header: Header, known: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in header.shapes}
    for tensors, names in _SWITCHES:
        found |= dict.fromkeys((each for each in names if each in known), any(map(header.has, tensors)))
    if "token_embd.weight" in header.shapes:
        found["vocab_size"] = header.shapes["token_embd.weight"][0]
    return found
