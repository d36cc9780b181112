"""What a weight becomes in the file: the codec in the loop of AWQ's searches.

ggml's own quantisers for GGUF types, and a plain integer grid with groups for other formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from edgepack.errors import UsageError
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows, quantize_rows

# From coarse to fine; `--search-bits 1` searches one step up from the file's type.
LADDER = (GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0)


class Rounding(Protocol):
    """Weights to what the file will hold of them.

    Attributes:
        group: consecutive weights of a row that are rounded independently of all others.
        activation_block: consecutive activations that share one 8-bit scale when the file runs; 0 for none.
    """

    @property
    def group(self) -> int:
        """As above."""
        ...

    @property
    def activation_block(self) -> int:
        """As above."""
        ...

    def __call__(self, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """`weight` [out, in] rounded; does not modify it.

        Args:
            weight: float32.
            importance: E[x²] [in], or None.
        """
        ...


@dataclass(frozen=True)
class GGMLRounding:
    """Through ggml's library, with its own search for scales.

    Attributes:
        kind: the block type.
    """

    kind: GGMLType

    @property
    def group(self) -> int:
        """Blocks are independent."""
        return self.kind.block_size

    @property
    def activation_block(self) -> int:
        """What ggml's CPU kernels multiply with: Q8_K beside types with blocks of 256, else Q8_0 or Q8_1."""
        return 256 if self.kind.block_size == 256 else 32

    def __call__(self, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """As `Rounding.__call__`."""
        rows = np.ascontiguousarray(weight.detach().cpu().float().numpy())
        weights = None if importance is None else importance.detach().cpu().float().numpy()
        blocks = quantize_rows(self.kind, rows, weights)
        return torch.from_numpy(dequantize_rows(self.kind, blocks, *rows.shape)).to(weight.device, weight.dtype)


@dataclass(frozen=True)
class IntegerRounding:
    """Asymmetric integers with a float16 scale and a zero point a group, as AutoAWQ has them.

    Attributes:
        bits: 2 to 8.
        group: consecutive weights of a row with one scale; a row's length where that is shorter.
        activation_block: AutoAWQ's kernels multiply in float16.
    """

    bits: int = 4
    group: int = 128
    activation_block: int = 0

    def __call__(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
        """As `Rounding.__call__`; the importance is not used."""
        scales, zeros, integers = self.quantise(weight)
        return ((integers - zeros[..., None]) * scales[..., None]).reshape(weight.shape).to(weight.dtype)

    def quantise(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scales [out, groups], zero points [out, groups] and integers [out, groups, group].

        All in float16, in which AutoAWQ computes: the same weights give the same integers.

        Raises:
            UsageError: a row is no whole number of groups.
        """
        out, columns = weight.shape
        group = min(self.group, columns)
        if columns % group:
            raise UsageError(f"awq.group: expected a divisor of a row's {columns} weights, got {group}")
        groups = weight.reshape(out, -1, group).half()
        most = 2**self.bits - 1
        low, high = groups.amin(-1), groups.amax(-1)
        scales = (high - low).clamp(min=1e-5) / most
        zeros = (-(low / scales).round()).clamp(0, most)
        integers = ((groups / scales[..., None]).round() + zeros[..., None]).clamp(0, most)
        return scales, zeros, integers


def rounding_for(kind: GGMLType, search_bits: int = 0) -> GGMLRounding | None:
    """The rounding of a file type, `search_bits` steps finer (or coarser when negative); None where nothing is lost.

    Types outside the K-quants' ladder are taken as they are.
    """
    if not kind.is_quantized:
        return None
    if search_bits and kind in LADDER:
        place = LADDER.index(kind) + search_bits
        kind = LADDER[min(max(place, 0), len(LADDER) - 1)]
    return GGMLRounding(kind)


def rounded_activations(inputs: torch.Tensor, block: int) -> torch.Tensor:
    """Activations as ggml's CPU kernels see them: integers -127 … 127 times a scale of their own in each block.

    Source: quantize_row_q8_K and quantize_row_q8_0 in ggml-quants.c. Does not modify `inputs`.

    Args:
        inputs: [..., in].
        block: consecutive channels with one scale; a short last block has its own.
    """
    columns = inputs.shape[-1]
    blocks = torch.nn.functional.pad(inputs, (0, -columns % block)).unflatten(-1, (-1, block))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    return ((blocks / scale).round() * scale).flatten(-2)[..., :columns]
