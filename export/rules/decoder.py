"""Rules that most decoders share: embedding and head, separate q, k and v, a gated feed-forward network.

Which of them a family has, and what differs, is that family's data in `export.architectures`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.arranged_rows import ReshapedRows, ShiftedRows
from edgepack.export.rules.family import Requirement, TensorRule
from edgepack.export.rules.permutations import interleave_keys, interleave_queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.family import Transform

    When = Callable[[ModelConfig, int], bool]

GATE_UP_DOWN = ("gate_proj", "up_proj", "down_proj")
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
    query: str = "q",
) -> tuple[TensorRule, ...]:
    """Separate q, k, v and the output projection.

    Args:
        interleaved: rope turns neighbouring pairs, so rows of q and k change their order.
        bias: q, k and v may have one.
        output_bias: the output projection may have one.
        optional: as `TensorRule.optional`.
        when: as `TensorRule.when`.
        query: the dimension of q's rows, which may hold a gate too.
    """
    parts = (("q", query, interleave_queries), ("k", "kv", interleave_keys), ("v", "kv", None))
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


def head_norm_rules(
    norm: Transform | None = None, *, when: When | None = None, name: str = "{}_norm"
) -> tuple[TensorRule, ...]:
    """Norms of each query and key head, one for all heads.

    Args:
        norm: the norms' transform.
        when: as `TensorRule.when`.
        name: of the norm in the checkpoint, `{}` is q or k.
    """
    return tuple(
        TensorRule(
            f"blk.{{i}}.attn_{part}_norm.weight",
            f"{LAYER}self_attn.{name.format(part)}.weight",
            "h",
            norm,
            when=when,
        )
        for part in "qk"
    )


def relocated(
    rules: Iterable[TensorRule], prefix: str, when: When | None = None, *, before: str = LAYER
) -> tuple[TensorRule, ...]:
    """Rules of a layer for layers whose tensors stand elsewhere, such as those of prediction.

    Args:
        rules: whose sources begin with `before`; where they have a condition of their own, both must hold.
        prefix: in place of `before`.
        when: as `TensorRule.when`.
        before: what the sources begin with.
    """

    def moved(sources: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(sources, str):
            return sources.replace(before, prefix)
        return tuple(source.replace(before, prefix) for source in sources)

    return tuple(
        replace(
            rule,
            sources=moved(rule.sources),
            when=rule.when if when is None else both(when, rule.when),
            alternatives=tuple(replace(other, sources=moved(other.sources)) for other in rule.alternatives),
        )
        for rule in rules
    )


def both(first: When, second: When | None) -> When:
    """Layers for which both hold; a second condition that is None always holds."""
    return first if second is None else lambda config, layer: first(config, layer) and second(config, layer)


def restricted(rules: Iterable[TensorRule], when: When) -> tuple[TensorRule, ...]:
    """The rules for layers where `when` holds, beside their own conditions."""
    return tuple(replace(rule, when=both(when, rule.when)) for rule in rules)


def resized(rules: Iterable[TensorRule], names: Mapping[str, str]) -> tuple[TensorRule, ...]:
    """The rules with other names of dimensions, for layers of another size.

    Args:
        rules: as they are for the usual layers.
        names: dimension → the one in its place.
    """
    return tuple(replace(rule, shape=" ".join(names.get(name, name) for name in rule.shape.split())) for rule in rules)


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
    names: tuple[str, str, str] = GATE_UP_DOWN,
    suffix: str = "",
    width: str = "ff",
    bias: bool = False,
    optional: bool = False,
    when: When | None = None,
) -> tuple[TensorRule, ...]:
    """A gated network: gate, up and down, each a matrix.

    Args:
        module: between the layer and `gate_proj`.
        names: of gate, up and down in the checkpoint.
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
            f"{LAYER}{module}{name}.{kind}",
            shape if kind == "weight" else shape.split()[0],
            None,
            optional or kind == "bias",
            when,
        )
        for kind in ("weight", *(["bias"] if bias else []))
        for name, (part, shape) in zip(names, parts, strict=True)
    )


def router_rule(source: str, when: When | None = None) -> TensorRule:
    """The matrix that chooses experts."""
    return TensorRule("blk.{i}.ffn_gate_inp.weight", source, "e d", when=when)


def one_row_as_vector(rows: Rows, _config: ModelConfig) -> Rows:
    """HF: [1, n] → ggml: {n}."""
    return ReshapedRows(rows, rows.shape[1:]) if len(rows.shape) == 2 and rows.shape[0] == 1 else rows


def squeezed(rows: Rows, _config: ModelConfig) -> Rows:
    """A convolution of each channel by itself, HF: [channels, 1, width] → ggml: {width, channels}."""
    return ReshapedRows(rows, rows.shape[::2]) if len(rows.shape) == 3 and rows.shape[1] == 1 else rows


def plus_one(rows: Rows, _config: ModelConfig) -> Rows:
    """Norms that are stored as w and applied as 1 + w."""
    return ShiftedRows(rows, 1.0)
