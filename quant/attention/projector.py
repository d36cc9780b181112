"""A linear map down to k dimensions and one back up, for the keys or the values of a layer.

It begins as the principal components of what was seen and can be trained; where it stands in a model is left to
`cache`, how it is trained to `training`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.quant.attention.moments import Moments

_RIDGE = 1e-6  # of the mean eigenvalue of a metric: its inverse root must exist


class LearnableProjector(nn.Module):  # type: ignore[misc]
    """x [batch, heads, tokens, head] → z [batch, groups, tokens, k] → x̂.

    Neighbouring heads are joined to `groups` vectors of `width` = heads · head / groups elements, and each has maps of
    its own: z = (x - mean) · down, x̂ = z · up + mean. At k = width the composition is the identity.

    Args:
        down: [groups, width, k].
        up: [groups, k, width].
        mean: [groups, width].
    """

    def __init__(self, down: torch.Tensor, up: torch.Tensor, mean: torch.Tensor) -> None:
        super().__init__()
        self.down, self.up, self.mean = nn.Parameter(down), nn.Parameter(up), nn.Parameter(mean)

    @classmethod
    def from_moments(
        cls, moments: Moments, rank: int, metric: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> LearnableProjector:
        """Principal components, the best linear map of its rank under the metric.

        With a metric M the error (x - x̂)ᵀ M (x - x̂) is the least: S = M^½, the components are those of S · C · S, and
        the way down is S times them, the way up them times S⁻¹ (as truncation-aware whitening, SVD-LLM).

        Args:
            moments: of the calibration text.
            rank: k, 1 to the moments' width.
            metric: [groups, width, width], symmetric and not negative; None is the identity.
            dtype: of the parameters.

        Raises:
            UsageError: k out of range.
        """
        require_rank(rank, moments.width)
        root, inverse = _roots(metric, moments)
        spread = root @ moments.covariance @ root
        components = torch.linalg.eigh(spread).eigenvectors[..., -rank:].flip(-1)
        down, up = root @ components, components.transpose(-1, -2) @ inverse
        lengths = up.norm(dim=-1)  # what is stored has the units of the states: every way up is one long
        down, up = down * lengths[:, None], up / lengths[..., None]
        return cls(down.to(dtype), up.to(dtype), moments.mean.to(dtype))

    @classmethod
    def of_pairs(
        cls, moments: Moments, rank: int, metric: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> LearnableProjector:
        """The pairs of rope that hold most, as they are: this commutes with rope, so that it need not be undone.

        Two linear maps that commute with turns by angles that all differ treat every pair by itself; of rank k, that is
        to keep k / 2 of them. A pair counts by its part of the trace of C ∘ M, C with the mean in it.

        Args:
            moments: groups are heads, whole heads are turned.
            rank: k, even.
            metric: as in `from_moments`.
            dtype: of the parameters.

        Raises:
            UsageError: k out of range or odd.
        """
        require_rank(rank, moments.width)
        if rank % 2:
            raise UsageError(f"k: expected an even number for pairs of rope, got {rank}")
        second = moments.covariance + moments.mean[..., :, None] * moments.mean[..., None, :]
        held = (second if metric is None else second * metric).sum(-1)
        half = moments.width // 2
        pairs = (held[:, :half] + held[:, half:]).topk(rank // 2, dim=-1).indices.sort(-1).values
        kept = torch.cat((pairs, pairs + half), dim=-1)
        up = torch.nn.functional.one_hot(kept, moments.width).to(dtype)
        return cls(up.transpose(-1, -2).contiguous(), up, torch.zeros_like(moments.mean, dtype=dtype))

    @property
    def groups(self) -> int:
        """Vectors that are stored for a token."""
        return int(self.down.shape[0])

    @property
    def rank(self) -> int:
        """Dimensions that are stored: k."""
        return int(self.down.shape[2])

    def compress(self, states: torch.Tensor) -> torch.Tensor:
        """[batch, heads, tokens, head] → [batch, groups, tokens, k]."""
        return (joined(states, self.groups) - self.mean[:, None]) @ self.down

    def expand(self, compressed: torch.Tensor, heads: int) -> torch.Tensor:
        """[batch, groups, tokens, k] → [batch, heads, tokens, head]."""
        return parted(compressed @ self.up + self.mean[:, None], heads)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """What comes back of `states`: the same shape."""
        return self.expand(self.compress(states), states.shape[1])


def require_rank(rank: int, width: int) -> None:
    """Raises UsageError where k is not 1 to `width`."""
    if not 1 <= rank <= width:
        raise UsageError(f"k: expected 1 to {width}, the elements that are projected together, got {rank}")


def joined(states: torch.Tensor, groups: int) -> torch.Tensor:
    """[batch, heads, tokens, head] → [batch, groups, tokens, heads / groups · head]."""
    batch, heads, tokens, head = states.shape
    if groups == heads:
        return states
    shaped = states.reshape(batch, groups, heads // groups, tokens, head).transpose(2, 3)
    return shaped.reshape(batch, groups, tokens, -1)


def parted(states: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `joined`."""
    batch, groups, tokens, _ = states.shape
    if groups == heads:
        return states
    shaped = states.reshape(batch, groups, tokens, heads // groups, -1).transpose(2, 3)
    return shaped.reshape(batch, heads, tokens, -1)


def _roots(metric: torch.Tensor | None, moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """M^½ and its inverse, [groups, width, width] float64."""
    if metric is None:
        identity = torch.eye(moments.width, dtype=torch.float64).expand_as(moments.covariance)
        return identity, identity
    values, vectors = torch.linalg.eigh(metric.double())
    values = values.clamp_min(0) + _RIDGE * values.mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    roots = values.sqrt()
    back = vectors.transpose(-1, -2)
    return (vectors * roots[:, None]) @ back, (vectors / roots[:, None]) @ back
