"""GPT-2: learnt positions, fused q, k, v, matrices stored transposed (Conv1D)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rules.decoder import GELU
from edgepack.export.rules.family import Family, Requirement, TensorRule, standard_dimensions
from edgepack.export.rules.metadata import common_metadata
from edgepack.export.rules.permutations import transposed
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_LAYER = "transformer.h.{i}."


def _feed_forward(config: ModelConfig) -> int:
    return config.count("n_inner", default=4 * config.hidden)


def _metadata(config: ModelConfig) -> dict[str, Value]:
    common = common_metadata(config, "gpt2", rope_types=(), epsilon="layer_norm_epsilon")
    return common | {"gpt2.feed_forward_length": u32(_feed_forward(config))}


def _dimensions(config: ModelConfig) -> dict[str, int]:
    ff = _feed_forward(config)
    inner = config.with_defaults({"intermediate_size": ff})
    return standard_dimensions(inner) | {"ff": ff, "3d": 3 * config.hidden, "ctx": config.count("n_positions", "n_ctx")}


def _affine(target: str, source: str, shape: str) -> tuple[TensorRule, ...]:
    """A matrix, transposed, and its bias."""
    return (
        TensorRule(f"blk.{{i}}.{target}.weight", f"{_LAYER}{source}.weight", shape, transposed),
        TensorRule(f"blk.{{i}}.{target}.bias", f"{_LAYER}{source}.bias", shape.split(maxsplit=1)[0]),
    )


FAMILY = Family(
    name="gpt2",
    classes=("GPT2LMHeadModel",),
    defaults={"layer_norm_epsilon": 1e-5, "n_positions": 1024, "tie_word_embeddings": True},
    metadata=_metadata,
    dimensions=_dimensions,
    renames=(("transformer.", ""),),  # saved without its head
    requirements=(
        Requirement("activation_function", GELU, "its graph uses GELU"),
        Requirement("scale_attn_weights", (True,), "its graph scales attention"),
        Requirement("scale_attn_by_inverse_layer_idx", (False,), "its graph scales every layer alike"),
        Requirement("add_cross_attention", (False,), "its graph has no cross attention"),
    ),
    tensors=(
        TensorRule("token_embd.weight", "transformer.wte.weight", "v d"),
        TensorRule("position_embd.weight", "transformer.wpe.weight", "ctx d"),
        *(TensorRule(f"output_norm.{kind}", f"transformer.ln_f.{kind}", "d") for kind in ("weight", "bias")),
        TensorRule("output.weight", "lm_head.weight", "v d"),
        *(
            TensorRule(f"blk.{{i}}.{norm}.{kind}", f"{_LAYER}{source}.{kind}", "d")
            for norm, source in (("attn_norm", "ln_1"), ("ffn_norm", "ln_2"))
            for kind in ("weight", "bias")
        ),
        *_affine("attn_qkv", "attn.c_attn", "3d d"),
        *_affine("attn_output", "attn.c_proj", "d d"),
        *_affine("ffn_up", "mlp.c_fc", "ff d"),
        *_affine("ffn_down", "mlp.c_proj", "d ff"),
    ),
)
