"""The residual stream in another order of channels: which tensors see it, as data, and a source that shows it.

Norms and sums do not care in which order channels stand, so every tensor that has them is put in the same order and
the function stays. Which order is good is left to `order`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.model import TensorSource, TensorSpec
    from edgepack.quant.calibration.blocks import BlockwiseModel

Axis = Literal["rows", "columns", "none"]
_READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj", "mlp.gate_proj",
          "mlp.up_proj", "mlp.gate_up_proj")  # fmt: skip
_WRITES = ("self_attn.o_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_OF_HEADS = ("self_attn.q_norm", "self_attn.k_norm")
# Families whose blocks hold these modules and no others that see the residual stream.
_FAMILIES = frozenset(("llama", "mistral", "qwen2", "qwen3", "granite", "stablelm", "gemma", "gemma2", "gemma3_text",
                       "olmo2", "phi3"))  # fmt: skip


def block_axis(path: str) -> Axis | None:
    """Along which axis a parameter of a block lies in the residual stream; None where that is not known.

    Args:
        path: in the block, such as `mlp.down_proj.bias`.
    """
    module, _, kind = path.rpartition(".")
    if module in _READS:
        return "columns" if kind == "weight" else "none"
    if module in _WRITES:
        return "rows" if kind == "weight" else "columns"
    if module in _NORMS:
        return "columns"
    return "none" if module in _OF_HEADS else None


def outer_names(model: BlockwiseModel) -> tuple[str, ...] | None:
    """Names of the tensors outside blocks, all of whose rows lie in the residual stream; None where any is unknown.

    A tower of another kind of input, whose outputs enter the stream, is such a one.
    """
    if model.checkpoint.config.get("model_type") not in _FAMILIES:
        return None
    for index in range(model.block_count):
        with model.block(index) as block:
            if any(block_axis(path) is None for path in block.names):
                return None
        break  # the others are like it
    inside = {name for index in range(model.block_count) for name in model.tensor_names(index)}
    outside = [name for name in model.source.specs if name not in inside and not name.endswith("inv_freq")]
    known = {model.embedding_name, model.head_name}
    return tuple(outside) if all(name in known or _is_last_norm(name) for name in outside) else None


def last_norm(outer: tuple[str, ...]) -> str | None:
    """Of the names outside blocks, that of the last norm's weight; None where there is not just one."""
    found = [name for name in outer if _is_last_norm(name) and name.endswith("weight")]
    return found[0] if len(found) == 1 else None


def _is_last_norm(name: str) -> bool:
    return name.rpartition(".")[0].rpartition(".")[2] == "norm" and name.count(".") <= 2


def reordered(array: NDArray[np.float32], axis: Axis, order: NDArray[np.int64]) -> NDArray[np.float32]:
    """`array` with the residual stream's channels in `order`; vectors lie along `columns`."""
    if axis == "none":
        return array
    return np.ascontiguousarray(array[order] if axis == "rows" else array[..., order])


@dataclass(frozen=True)
class ChangedColumns:
    """A source some of whose tensors have their columns in another order, or scaled. Does not modify `base`.

    Attributes:
        base: the source below.
        orders: name → which column stands at each place [columns].
        scales: name → what the columns are multiplied with [columns].
    """

    base: TensorSource
    orders: Mapping[str, NDArray[np.int64]]
    scales: Mapping[str, NDArray[np.float32]]

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Those of `base`."""
        return self.base.specs

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        rows = self.base.read_rows(name, start, stop)
        if name in self.orders:
            rows = np.ascontiguousarray(rows[:, self.orders[name]])
        return rows * self.scales[name] if name in self.scales else rows
