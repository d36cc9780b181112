"""Expert stacks: the three matrices of every routed expert of a layer, in either form that checkpoints have.

Which expert is used, and the router, are the families' data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.arranged_rows import SlicedExperts
from edgepack.export.expert_rows import TransposedExperts
from edgepack.export.rules.decoder import GATE_UP_DOWN, LAYER, feed_forward_rules, one_row_as_vector
from edgepack.export.rules.family import Origin, TensorRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.family import Transform


def expert_rules(
    prefix: str,
    *,
    fused_prefix: str | None = None,
    names: tuple[str, str, str] = GATE_UP_DOWN,
    width: str = "moe",
    when: Callable[[ModelConfig, int], bool] | None = None,
    optional: bool = False,
) -> tuple[TensorRule, ...]:
    """Rules for `ffn_gate_exps`, `ffn_up_exps` and `ffn_down_exps`.

    Published: a matrix an expert, `{prefix}{e}.gate_proj.weight` [width, d]. As transformers 5 holds them (and
    writes them with `save_original_format=False`): `gate_up_proj` [experts, 2 · width, d] with the gates first,
    and `down_proj` [experts, d, width].

    Args:
        prefix: of the published names, up to the expert's number.
        fused_prefix: of the fused names; `prefix` where None.
        names: of gate, up and down in the published names.
        width: the dimension of an expert's inner width.
        when: as `TensorRule.when`.
        optional: as `TensorRule.optional`.
    """
    gate, up, down = (f"{prefix}{{e}}.{name}.weight" for name in names)
    fused = prefix if fused_prefix is None else fused_prefix
    rows, back = f"e {width} d", f"e d {width}"
    fused_gate, fused_up = (Origin(f"{fused}gate_up_proj", half) for half in (_gates, _ups))
    return (
        TensorRule("blk.{i}.ffn_gate_exps.weight", gate, rows, None, optional, when, (fused_gate,)),
        TensorRule("blk.{i}.ffn_up_exps.weight", up, rows, None, optional, when, (fused_up,)),
        TensorRule("blk.{i}.ffn_down_exps.weight", down, back, None, optional, when, (Origin(f"{fused}down_proj"),)),
    )


def transposed_expert_rules(
    prefix: str, *, held: bool = True, width: str = "moe", when: Callable[[ModelConfig, int], bool] | None = None
) -> tuple[TensorRule, ...]:
    """As `expert_rules` for fused experts alone, published transposed: `gate_up_proj` [experts, d, 2 · width].

    Args:
        prefix: of the names.
        held: transformers 5 turns them while it reads, unless the shape is already the one that it holds; so does
            this. Where False they are always transposed.
        width: the dimension of an expert's inner width.
        when: as `TensorRule.when`.
    """
    rows, back = f"e {width} d", f"e d {width}"
    turned, turned_back = (_turned, _turned_back) if held else (_transposed, _transposed)

    def halves(half: Transform) -> Transform:
        return lambda rows, config: half(turned(rows, config), config)

    return (
        TensorRule("blk.{i}.ffn_gate_exps.weight", f"{prefix}gate_up_proj", rows, halves(_gates), when=when),
        TensorRule("blk.{i}.ffn_up_exps.weight", f"{prefix}gate_up_proj", rows, halves(_ups), when=when),
        TensorRule("blk.{i}.ffn_down_exps.weight", f"{prefix}down_proj", back, turned_back, when=when),
    )


def _transposed(rows: Rows, _config: ModelConfig) -> Rows:
    return TransposedExperts(rows) if len(rows.shape) == 3 else rows


def _turned(rows: Rows, config: ModelConfig) -> Rows:
    """Experts with rows of d; as they are where they have them already."""
    if len(rows.shape) == 3 and rows.shape[2] != config.hidden and rows.shape[1] == config.hidden:
        return TransposedExperts(rows)
    return rows


def _turned_back(rows: Rows, config: ModelConfig) -> Rows:
    """Experts [experts, d, width]; as they are where the second dimension is d."""
    if len(rows.shape) == 3 and rows.shape[1] != config.hidden and rows.shape[2] == config.hidden:
        return TransposedExperts(rows)
    return rows


def halves_of_experts(sources: tuple[str, ...], width: str = "ff") -> tuple[TensorRule, ...]:
    """Rules for `ffn_gate_exps` and `ffn_up_exps` of checkpoints that hold the two as one stack, gates first.

    Args:
        sources: names of the stack [experts, 2 · width, d], those of other versions after the first.
        width: the dimension of an expert's inner width.
    """
    return tuple(
        TensorRule(
            f"blk.{{i}}.ffn_{part}_exps.weight",
            sources[0],
            f"e {width} d",
            half,
            alternatives=tuple(Origin(source, half) for source in sources[1:]),
        )
        for part, half in (("gate", _gates), ("up", _ups))
    )


GATED_SHARED_EXPERT = (
    TensorRule("blk.{i}.ffn_gate_inp_shexp.weight", LAYER + "mlp.shared_expert_gate.weight", "d", one_row_as_vector),
    *feed_forward_rules(module="mlp.shared_expert.", suffix="_shexp", width="shared"),
)
"""Qwen's expert that sees every token, behind a gate of its own."""


def _gates(rows: Rows, _config: ModelConfig) -> Rows:
    return SlicedExperts(rows, 0, _half(rows))


def _ups(rows: Rows, _config: ModelConfig) -> Rows:
    return SlicedExperts(rows, _half(rows), rows.shape[1])


def _half(rows: Rows) -> int:
    if len(rows.shape) != 3 or rows.shape[1] % 2:
        raise CheckpointError(f"gate_up_proj: expected [experts, 2 × width, hidden], got {list(rows.shape)}")
    return rows.shape[1] // 2
