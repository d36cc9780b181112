"""Where a scale on input channels can be undone exactly in the layer before: a table for each family.

Data, and the one function that applies a fold to a block. Which scales are good is left to `scales`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgepack.quant.calibration.blocks import is_linear

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn


@dataclass(frozen=True)
class Fold:
    """Input channels of `sinks` times s, outputs of `source` divided by s: the block's function stays.

    Attributes:
        source: path in the block of the norm or linear whose output channels are divided.
        sinks: paths of all linears that read those channels, and nothing else reads them.
        parent: path of the module whose output judges a scale; empty where the sinks' own outputs do.
        part: which rows of a joined linear are the source: all, its `second_half`, or the value projection's
            rows (`values`) behind queries and keys.
        norm_offset: what the graph adds to the norm's weight (1 for Gemma).
        per_head: the source is a value projection and the sinks read heads; with grouped heads, query heads
            that share a value head share its scales.
    """

    source: str
    sinks: tuple[str, ...]
    parent: str = ""
    part: Literal["all", "second_half", "values"] = "all"
    norm_offset: float = 0.0
    per_head: bool = False


def _gated(before_mlp: str, norm_offset: float = 0.0) -> tuple[Fold, ...]:
    """Norm → q, k, v; v → o; norm → gate, up; up → down."""
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return (
        Fold("input_layernorm", attention, "self_attn", norm_offset=norm_offset),
        Fold("self_attn.v_proj", ("self_attn.o_proj",), per_head=True),
        Fold(before_mlp, ("mlp.gate_proj", "mlp.up_proj"), "mlp", norm_offset=norm_offset),
        Fold("mlp.up_proj", ("mlp.down_proj",)),
    )


_LLAMA = _gated("post_attention_layernorm")
# model_type → folds; a family that is absent has no table and is passed over.
FOLDS: dict[str, tuple[Fold, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "granite": _LLAMA,
    "stablelm": _LLAMA,
    "gemma": _gated("post_attention_layernorm", 1.0),
    "gemma2": _gated("pre_feedforward_layernorm", 1.0),
    "gemma3_text": _gated("pre_feedforward_layernorm", 1.0),
    # Norms stand behind the sub-layers, so nothing can be folded into them.
    "olmo2": (_LLAMA[1], _LLAMA[3]),
    "phi3": (
        Fold("input_layernorm", ("self_attn.qkv_proj",), "self_attn"),
        Fold("self_attn.qkv_proj", ("self_attn.o_proj",), part="values", per_head=True),
        Fold("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp"),
        Fold("mlp.gate_up_proj", ("mlp.down_proj",), part="second_half"),
    ),
    # Attention and feed-forward read one norm side by side; GELU lies between fc1 and fc2.
    "phi": (
        Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1")),
        Fold("self_attn.v_proj", ("self_attn.dense",), per_head=True),
    ),
    "gpt2": (
        Fold("ln_1", ("attn.c_attn",), "attn"),
        Fold("attn.c_attn", ("attn.c_proj",), part="values", per_head=True),
        Fold("ln_2", ("mlp.c_fc",), "mlp"),
    ),
    # Query, key and value rows are interleaved by head, so v → dense is left alone.
    "gpt_neox": (
        Fold("input_layernorm", ("attention.query_key_value",), "attention"),
        Fold("post_attention_layernorm", ("mlp.dense_h_to_4h",), "mlp"),
    ),
    "starcoder2": (
        Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn"),
        Fold("self_attn.v_proj", ("self_attn.o_proj",), per_head=True),
        Fold("post_attention_layernorm", ("mlp.c_fc",), "mlp"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class HeadCounts:
    """Query heads and key-value heads of a model, as its configuration says."""

    query: int
    key_value: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> HeadCounts:
        """Read from a `config.json`."""
        query = int(config.get("num_attention_heads") or config.get("n_head") or 1)
        return cls(query, int(config.get("num_key_value_heads") or query))


def spread_over_heads(scales: torch.Tensor, heads: HeadCounts) -> torch.Tensor:
    """Scales of value channels [kv heads × width] as those of the sink's columns [query heads × width]."""
    width = len(scales) // heads.key_value
    repeats = heads.query // heads.key_value
    return scales.reshape(heads.key_value, 1, width).expand(-1, repeats, -1).reshape(-1)


def gather_heads(columns: torch.Tensor, heads: HeadCounts) -> torch.Tensor:
    """Geometric mean over the query heads of each value head: [query heads × width] → [kv heads × width]."""
    width = len(columns) // heads.query
    groups = columns.reshape(heads.key_value, heads.query // heads.key_value, width)
    return groups.log().mean(dim=1).exp().reshape(-1)


def apply_fold(block: nn.Module, fold: Fold, scales: torch.Tensor, heads: HeadCounts) -> None:
    """Fold `scales` into `block`, in place; the block computes the same function.

    Args:
        block: a transformer block.
        fold: from the table of its family.
        scales: positive, one for each output channel of the source (its value rows for `values`).
        heads: of the model.
    """
    columns = spread_over_heads(scales, heads) if fold.per_head else scales
    for path in fold.sinks:
        _columns_first(block.get_submodule(path)).mul_(columns)
    source = block.get_submodule(fold.source)
    if is_linear(source):
        rows = source_rows(source, fold, len(scales))
        _columns_first(source)[rows].div_(scales[:, None])
    else:
        rows = slice(None)
        source.weight.data.copy_((source.weight.data + fold.norm_offset) / scales - fold.norm_offset)
    if getattr(source, "bias", None) is not None:
        source.bias.data[rows].div_(scales)


def source_rows(source: nn.Module, fold: Fold, count: int) -> slice:
    """Which output channels of a linear source are divided: all, or the last `count` of a joined one."""
    total = _columns_first(source).shape[0]
    return slice(None) if fold.part == "all" else slice(total - count, total)


def _columns_first(linear: nn.Module) -> torch.Tensor:
    """A linear's weight as [out, in]; a view."""
    weight = linear.weight.data
    return weight.T if type(linear).__name__ == "Conv1D" else weight
