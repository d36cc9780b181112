"""Rules that most decoders share: embedding and head, separate q, k and v, a gated feed-forward network.

Which of them a family has, and what differs, is that family's data in `export.architectures`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.rows import ShiftedRows
from edgepack.export.rules.family import Requirement, TensorRule
from edgepack.export.rules.permutations import interleave_keys, interleave_queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.family import Transform

    When = Callable[[ModelConfig, int], bool]

LAYER = "model.layers.{i}."
"""How the names of a layer's tensors begin in most checkpoints."""

WHOLE_HEADS = Requirement("rope_parameters.partial_rotary_factor", (1,), "its graph rotates whole heads")
SILU = Requirement("hidden_act", ("silu", "swish"), "its graph uses SiLU")
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""Activations within the precision of ggml's GELU, a table of half-precision numbers (tanh approximation)."""

NO_ATTENTION_BIAS = Requirement("attention_bias", (False,), "its graph has no bias after attention")
EVERY_LAYER_HAS_EXPERTS = (
    Requirement("decoder_sparse_step", (1,), "every layer of its graph has experts"),
    Requirement("mlp_only_layers", ([],), "every layer of its graph has experts"),
)
EQUAL_HEADS = Requirement(
    "head_dim", lambda config: (config.hidden // config.n_heads,), "its graph splits the hidden size among the heads"
)


def embedding_rules(norm: Transform | None = None) -> tuple[TensorRule, ...]:
    """Embedding, last norm, head.

    Args:
        norm: the norm's transform.
    """
    return (
        TensorRule("token_embd.weight", "model.embed_tokens.weight", "v d"),
        TensorRule("output_norm.weight", "model.norm.weight", "d", norm),
        TensorRule("output.weight", "lm_head.weight", "v d"),
    )


def tied_head_copy(embedding: str = "model.embed_tokens.weight") -> TensorRule:
    """The embedding once more as the head, for graphs that cannot share it."""
    return TensorRule("output.weight", embedding, "v d", when=lambda config, _layer: config.tied)


def attention_rules(
    *,
    interleaved: bool = False,
    bias: bool = True,
    output_bias: bool = False,
    optional: bool = False,
    when: When | None = None,
) -> tuple[TensorRule, ...]:
    """Separate q, k, v and the output projection.

    Args:
        interleaved: rope turns neighbouring pairs, so rows of q and k change their order.
        bias: q, k and v may have one.
        output_bias: the output projection may have one.
        optional: as `TensorRule.optional`.
        when: as `TensorRule.when`.
    """
    parts = (("q", "q", interleave_queries), ("k", "kv", interleave_keys), ("v", "kv", None))
    rules = [
        TensorRule(
            f"blk.{{i}}.attn_{part}.{kind}",
            f"{LAYER}self_attn.{part}_proj.{kind}",
            rows if kind == "bias" else f"{rows} d",
            order if interleaved else None,
            optional or kind == "bias",
            when,
        )
        for kind in ("weight", *(["bias"] if bias else []))
        for part, rows, order in parts
    ]
    rules.append(
        TensorRule("blk.{i}.attn_output.weight", LAYER + "self_attn.o_proj.weight", "d q", None, optional, when)
    )
    if output_bias:
        rules.append(TensorRule("blk.{i}.attn_output.bias", LAYER + "self_attn.o_proj.bias", "d", None, True, when))
    return tuple(rules)


def head_norm_rules(norm: Transform | None = None) -> tuple[TensorRule, ...]:
    """Norms of each query and key head, one for all heads."""
    return tuple(
        TensorRule(f"blk.{{i}}.attn_{part}_norm.weight", f"{LAYER}self_attn.{part}_norm.weight", "h", norm)
        for part in "qk"
    )


def norm_rules(names: dict[str, str], transform: Transform | None = None) -> tuple[TensorRule, ...]:
    """Norms of the residual stream: GGUF name → checkpoint name, both within a layer."""
    return tuple(
        TensorRule(f"blk.{{i}}.{ours}.weight", f"{LAYER}{theirs}.weight", "d", transform)
        for ours, theirs in names.items()
    )


LLAMA_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def feed_forward_rules(
    *,
    module: str = "mlp.",
    suffix: str = "",
    width: str = "ff",
    bias: bool = False,
    optional: bool = False,
    when: When | None = None,
) -> tuple[TensorRule, ...]:
    """A gated network: gate, up and down, each a matrix.

    Args:
        module: between the layer and `gate_proj`.
        suffix: of the GGUF names, such as `_shexp` for a shared expert.
        width: its inner dimension.
        bias: the matrices may have one.
        optional: as `TensorRule.optional`.
        when: as `TensorRule.when`.
    """
    parts = (("gate", f"{width} d"), ("up", f"{width} d"), ("down", f"d {width}"))
    return tuple(
        TensorRule(
            f"blk.{{i}}.ffn_{part}{suffix}.{kind}",
            f"{LAYER}{module}{part}_proj.{kind}",
            shape if kind == "weight" else shape.split()[0],
            None,
            optional or kind == "bias",
            when,
        )
        for kind in ("weight", *(["bias"] if bias else []))
        for part, shape in parts
    )


def router_rule(source: str, when: When | None = None) -> TensorRule:
    """The matrix that chooses experts."""
    return TensorRule("blk.{i}.ffn_gate_inp.weight", source, "e d", when=when)


def plus_one(rows: Rows, _config: ModelConfig) -> Rows:
    """Norms that are stored as w and applied as 1 + w."""
    return ShiftedRows(rows, 1.0)
