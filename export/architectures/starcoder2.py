"""StarCoder 2: LayerNorm and biases everywhere, no gate. The context ends at the sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import EQUAL_HEADS, GELU, LAYER, WHOLE_HEADS
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.export.rules.metadata import attention_window, common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "starcoder2", window=attention_window(config), epsilon="norm_epsilon")


# GGUF name → checkpoint name and shape, within a layer; each has a bias of the shape's first dimension.
_PAIRS = {
    "attn_norm": ("input_layernorm", "d"),
    "attn_q": ("self_attn.q_proj", "q d"),
    "attn_k": ("self_attn.k_proj", "kv d"),
    "attn_v": ("self_attn.v_proj", "kv d"),
    "attn_output": ("self_attn.o_proj", "d q"),
    "ffn_norm": ("post_attention_layernorm", "d"),
    "ffn_up": ("mlp.c_fc", "ff d"),
    "ffn_down": ("mlp.c_proj", "d ff"),
}

FAMILY = Family(
    name="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    defaults={
        "num_key_value_heads": 2,
        "norm_epsilon": 1e-5,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    metadata=_metadata,
    requirements=(
        Requirement("hidden_act", GELU, "its graph uses GELU"),
        Requirement("use_bias", (True,), "its graph has biases"),
        Requirement("norm_type", ("layer_norm",), "its graph uses LayerNorm"),
        Requirement("mlp_type", ("default",), "its graph has no gate"),
        WHOLE_HEADS,
        EQUAL_HEADS,
    ),
    tensors=(
        TensorRule("token_embd.weight", "model.embed_tokens.weight", "v d"),
        TensorRule("output_norm.weight", "model.norm.weight", "d"),
        TensorRule("output_norm.bias", "model.norm.bias", "d"),
        TensorRule("output.weight", "lm_head.weight", "v d"),
        *(
            TensorRule(
                f"blk.{{i}}.{ours}.{kind}", f"{LAYER}{theirs}.{kind}", shape if kind == "weight" else shape.split()[0]
            )
            for ours, (theirs, shape) in _PAIRS.items()
            for kind in ("weight", "bias")
        ),
    ),
)
