"""One key with rope for all heads: what of every head's keys can share it, and what is left without rope.

The algebra of TransMLA (arXiv 2502.07864, RoRoPE and FreqFold): elements j and j + head/2 of a key are one complex
number that rope turns by e^{i·p·θ_j}. A complex mixture over heads of numbers with the same θ turns by it too, so the
first component of each frequency can stand for all heads; the others lose their rope. What makes the numbers is left to
`latent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class SharedRope:
    """Linear maps of keys before rope, `kv_heads` of `head` elements, real.

    Attributes:
        down: [dimensions, kv_heads · head]: keys → the shared key, pairs of rope beside each other.
        queries: [kv_heads, dimensions, head]: a query of a head that reads this head of keys → its part with rope.
        rest: [kv_heads · head, kv_heads · head]: keys → what scores take without rope.
    """

    down: torch.Tensor
    queries: torch.Tensor
    rest: torch.Tensor

    @property
    def dimensions(self) -> int:
        """Elements of the shared key."""
        return int(self.down.shape[0])


def share_rope(
    keys: torch.Tensor, queries: torch.Tensor, angles: torch.Tensor, distances: torch.Tensor, fold: int = 1
) -> SharedRope:
    """The first complex component of every `fold` neighbouring frequencies over all heads.

    Args:
        keys: second moments before rope [kv_heads · head, kv_heads · head] float64.
        queries: likewise, [kv_heads, head, head], of the heads that read each head of keys.
        angles: θ [head / 2]: components take the first of their frequencies, as rope of fewer dimensions has it.
        distances: how often a key is asked from each distance, [longest + 1], of sum 1: what is left without rope is
            multiplied by the mean of e^{i·Δ·θ} over it, the best that does not turn.
        fold: 1 for a component a frequency.

    Raises:
        UsageError: `fold` does not divide the frequencies.
    """
    kv_heads, head, _ = queries.shape
    half = head // 2
    if fold < 1 or half % fold:
        raise UsageError(f"fold: expected a divisor of the {half} frequencies of rope, got {fold}")
    moments = _complex_moments(keys, kv_heads, head)
    asked = torch.stack([_complex_moments(each, 1, head).diagonal() for each in queries]).real
    down = torch.zeros(half // fold, kv_heads, half, dtype=torch.complex128)
    up = torch.zeros_like(down)
    for component in range(half // fold):
        members = slice(component * fold, (component + 1) * fold)
        at = torch.cat([torch.arange(half)[members] + each * half for each in range(kv_heads)])
        weights = asked[:, members].reshape(-1).clamp_min(1e-12).sqrt()
        block = weights[:, None] * moments[at][:, at] * weights[None]
        first = torch.linalg.eigh(block).eigenvectors[:, -1]
        down[component, :, members] = (first.conj() * weights).reshape(kv_heads, fold)
        up[component, :, members] = (first / weights).reshape(kv_heads, fold)
    lost = torch.eye(kv_heads * half, dtype=torch.complex128) - up.flatten(1).T @ down.flatten(1)
    lags = torch.arange(len(distances)).double()
    seen = (distances.double()[:, None] * torch.exp(1j * lags[:, None] * angles.double())).sum(0)
    rest = seen.conj().repeat(kv_heads)[:, None] * lost
    return SharedRope(
        _real(down.flatten(1), _interleaved(half // fold), _halves(kv_heads, head)),
        torch.stack([
            _real(up[:, each].conj(), _interleaved(half // fold), _halves(1, head)) for each in range(kv_heads)
        ]),
        _real(rest, _halves(kv_heads, head), _halves(kv_heads, head)),
    )  # fmt: skip


def keep_rope(kv_heads: int, head: int) -> SharedRope:
    """Every head's keys with their rope side by side: exact, with kv_heads · head dimensions and nothing left."""
    width = kv_heads * head
    order = torch.cat([each * head + torch.tensor(_of_head(head)) for each in range(kv_heads)])
    down = torch.eye(width, dtype=torch.float64)[order]
    queries = torch.stack([down[:, each * head : (each + 1) * head] for each in range(kv_heads)])
    return SharedRope(down, queries, torch.zeros(width, width, dtype=torch.float64))


def causal_distances(length: int) -> torch.Tensor:
    """How often each distance is there between a token and those up to it in a text of `length` tokens."""
    counts = torch.arange(length, 0, -1).double()
    return counts / counts.sum()


def _of_head(head: int) -> Sequence[int]:
    """Elements of a head so that those of one complex number stand beside each other."""
    return [part for pair in range(head // 2) for part in (pair, pair + head // 2)]


def _halves(heads: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of real and imaginary parts where each head has first all of one, then all of the other."""
    real = (torch.arange(heads)[:, None] * head + torch.arange(head // 2)).reshape(-1)
    return real, real + head // 2


def _interleaved(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * torch.arange(count), 2 * torch.arange(count) + 1


def _complex_moments(moments: torch.Tensor, heads: int, head: int) -> torch.Tensor:
    """E[c · cᴴ] of complex numbers from the second moments of their parts."""
    real, imaginary = _halves(heads, head)
    both = moments[real][:, real] + moments[imaginary][:, imaginary]
    crossed = moments[imaginary][:, real] - moments[real][:, imaginary]
    return torch.complex(both, crossed)


def _real(
    matrix: torch.Tensor, rows: tuple[torch.Tensor, torch.Tensor], columns: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """The real matrix of a complex linear map, its parts at these places."""
    found = torch.zeros(2 * matrix.shape[0], 2 * matrix.shape[1], dtype=torch.float64)
    for row, column, part in (
        (0, 0, matrix.real), (0, 1, -matrix.imag), (1, 0, matrix.imag), (1, 1, matrix.real)
    ):  # fmt: skip
        found[rows[row][:, None], columns[column][None]] = part
    return found
