"""The subspaces of SeedLM's seeds, and the one inner product that bounds how well a seed can do. Publisher only.

For seed s with an orthonormal basis Q of the columns of U(s), no coefficients reach an error below ‖x‖² - ‖Qᵀx‖²,
and ‖Qᵀx‖² = ⟨QQᵀ, xxᵀ⟩ is one inner product of C(C+1)/2 numbers. Searching is left to `seedlm_search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from edgepack.quant.codecs.seedlm import lfsr
from edgepack.quant.codecs.seedlm.rounding import factors
from edgepack.quant.codecs.seedlm.weighted import weighted_factors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_CONDITION = 100  # seeds whose matrix is worse conditioned are never used
# Scores are compared by groups: one maximum for 32 seeds, and a look inside only where it is large enough.
GROUP = 32


@dataclass(frozen=True)
class Basis:
    """U(s) = Q·R for every usable seed, and what the product needs.

    Attributes:
        seeds: int64 [S].
        matrices: float32 [S, C·P], their U(s) row by row, as they are decoded.
        factors: float32 [S, …], `seedlm_rounding.factors` of Q and R.
        bounds: float32 [C(C+1)/2, S']: the upper triangle of QQᵀ with the off-diagonal doubled; columns beyond
            S fill up the last group and are zero.
        coefficients: P.
        register_bits: K.
    """

    seeds: torch.Tensor
    matrices: torch.Tensor
    factors: torch.Tensor
    bounds: torch.Tensor
    coefficients: int
    register_bits: int

    def of(self, seed: torch.Tensor, roots: torch.Tensor | None = None) -> torch.Tensor:
        """The factors of seeds (indices, int64 [n]); of diag(root)·U(s) where roots of weights [n, C] are given."""
        if roots is None:
            return self.factors.index_select(0, seed)
        return weighted_factors(self.matrices.index_select(0, seed), roots, self.coefficients)


@lru_cache(maxsize=2)
def plain_basis(block: int, coefficients: int, register_bits: int, device: str) -> Basis:
    """The basis of every seed where all columns weigh the same."""
    matrices = torch.from_numpy(lfsr.matrices(register_bits, block, coefficients))
    return _make_basis(matrices.to(device), register_bits)


def seed_basis(
    block: int, coefficients: int, register_bits: int, device: str, root: NDArray[np.float32] | None = None
) -> Basis:
    """The basis of every seed, of diag(root)·U(s) where roots of weights are given."""
    if root is None:
        return plain_basis(block, coefficients, register_bits, device)
    matrices = torch.from_numpy(lfsr.matrices(register_bits, block, coefficients) * root[:, None])
    return _make_basis(matrices.to(device), register_bits)


def _make_basis(matrices: torch.Tensor, register_bits: int) -> Basis:
    """Q, R and the bounds of U [S, C, P], without the seeds whose condition number is above the limit."""
    q, r = _gram_schmidt(matrices.double())
    usable = torch.nonzero(_well_conditioned(r))[:, 0]
    q, r = q[usable].float(), r[usable].float()
    upper = torch.triu_indices(q.shape[1], q.shape[1], device=q.device)
    bounds = torch.zeros(upper.shape[1], -(-len(usable) // GROUP) * GROUP, device=q.device)
    for row, (i, j) in enumerate(upper.T.tolist()):
        bounds[row, : len(usable)] = (q[:, i] * q[:, j]).sum(-1) * (1 if i == j else 2)
    kept = matrices.index_select(0, usable).flatten(1).float()
    return Basis(usable + 1, kept, factors(q, r), bounds, q.shape[2], register_bits)


def _well_conditioned(r: torch.Tensor) -> torch.Tensor:
    """Which triangles [S, P, P] have a condition number within the limit.

    ‖R‖·‖R⁻¹‖ in Frobenius norms is at least that number, so only few need their eigenvalues.
    """
    whole = torch.eye(r.shape[1], dtype=r.dtype, device=r.device).expand_as(r)
    inverse = torch.linalg.solve_triangular(r, whole, upper=True)
    norms = torch.linalg.matrix_norm(r) * torch.linalg.matrix_norm(inverse)
    good = norms <= MAX_CONDITION
    doubtful = torch.nonzero(~good)[:, 0]
    values = torch.linalg.eigvalsh(r[doubtful].mT @ r[doubtful])
    good[doubtful] = values[:, -1] <= values[:, 0] * MAX_CONDITION**2
    return good


def _gram_schmidt(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """QR of many small matrices [S, C, P], column by column, each column orthogonalised twice."""
    columns: list[torch.Tensor] = []
    r = torch.zeros(matrices.shape[0], matrices.shape[2], matrices.shape[2], dtype=matrices.dtype).to(matrices.device)
    for p in range(matrices.shape[2]):
        vector = matrices[:, :, p].clone()
        for _ in range(2):
            for earlier, column in enumerate(columns):
                inner = (column * vector).sum(-1)
                r[:, earlier, p] += inner
                vector -= column * inner[:, None]
        r[:, p, p] = torch.linalg.vector_norm(vector, dim=-1)
        columns.append(vector / r[:, p, p, None].clamp_min(1e-30))
    return torch.stack(columns, -1), r


def outer_products(x: torch.Tensor) -> torch.Tensor:
    """The upper triangle of xxᵀ for each row of x: what `Basis.bounds` is multiplied with."""
    upper = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return x[:, upper[0]] * x[:, upper[1]]
