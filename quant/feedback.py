"""Error feedback: round one input column after the other, each error made good by the columns not yet rounded.

The one core behind SparseGPT, GPTQ and LDLQ; what "round" means (zero, a grid, a trellis) is the caller's rounder.
It knows nothing of models. Sources: Frantar and Alistarh, GPTQ (arXiv 2210.17323) and SparseGPT (arXiv 2301.00774);
Chee et al., QuIP (arXiv 2307.13304), for the equivalence with LDLQ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from edgepack.errors import NumericError

DAMPING = 0.01  # of the mean diagonal, as GPTQ and SparseGPT have it
_MOST_DAMPING = 10.0
_INVERTED_WHOLE = 256  # columns of a triangle that a plain solve inverts
_STRIP, _REVERSED = 256, 1 << 20  # rows, and numbers, that are moved at a time


@dataclass(frozen=True)
class FeedbackFactor:
    """The upper Cholesky factor U of the damped H⁻¹ = UᵀU.

    Attributes:
        upper: [in, in]. Rounding column j with error e moves column k > j by -e · U[j, k] / U[j, j].
        damping: what was added to the diagonal, as a fraction of its mean.
        dead: bool [in], input channels that were always zero; their weights do not matter.
    """

    upper: torch.Tensor
    damping: float
    dead: torch.Tensor

    @property
    def diagonal(self) -> torch.Tensor:
        """U[j, j] [in]; 1 / U[j, j]² is what an error in column j costs once later columns have made good."""
        return self.upper.diagonal()


def feedback_factor(hessian: torch.Tensor, damping: float = DAMPING, name: str = "") -> FeedbackFactor:
    """Factorise H = XᵀX / tokens for `feedback_sweep`; does not modify `hessian`.

    A singular H (too few tokens, channels that copy each other) gets ten times more damping until it
    factorises; the result reports how much.

    Args:
        hessian: [in, in], symmetric, positive semi-definite, on any device.
        damping: fraction of the mean diagonal that is added to the diagonal; 0 for none.
        name: of the layer, for messages.

    Raises:
        NumericError: NaN or infinity in `hessian`, or it is not positive semi-definite.
    """
    if not _is_finite(hessian):
        raise NumericError(f"layer '{name}': NaN or infinity in its Hessian")
    diagonal = hessian.diagonal().to(_precise(hessian.device))
    dead = diagonal <= 0
    mean = diagonal[~dead].mean() if not dead.all() else torch.ones_like(diagonal[0])
    while damping <= _MOST_DAMPING:
        upper = _inverse_upper(hessian, torch.where(dead, mean, damping * mean))
        if upper is not None:
            return FeedbackFactor(upper, damping, dead)
        damping = max(damping * 10, 1e-6)
    raise NumericError(f"layer '{name}': its Hessian is not positive semi-definite")


def damping_note(name: str, tokens: int, columns: int, factor: FeedbackFactor, asked: float) -> str:
    """A line for people on a Hessian that could not be used as it was; empty where nothing is to be told.

    Args:
        name: of the layer.
        tokens: that H was averaged over: fewer than `columns` cannot give a regular H.
        columns: of the weight.
        factor: of the Hessian.
        asked: the damping that was asked for.
    """
    if tokens < columns:
        cause = f"{tokens} tokens for {columns} input channels"
    elif factor.damping > asked:
        cause = "input channels depend on each other"
    else:
        return ""
    return f"layer '{name}': its Hessian is singular ({cause}), damped by {factor.damping:g} of its mean diagonal"


def _precise(device: torch.device) -> Any:
    """float64, but float32 where the device has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def _inverse_upper(hessian: torch.Tensor, added: torch.Tensor) -> torch.Tensor | None:
    """U with M⁻¹ = UᵀU for M = `hessian` + diag(`added`), float32; None where M is not positive definite.

    With J the reversal of rows and columns and L the lower factor of J·M·J, M = (J·L·J)(J·L·J)ᵀ, so U is the
    inverse of the upper triangular J·L·J: one factorisation and one triangular inverse. All in one array of float64,
    1.6 GB for 14,336 columns: Lᵀ row by row is L column by column, which is how LAPACK has it, and from behind it is
    (J·L·J)ᵀ.
    """
    work = torch.empty(hessian.shape, dtype=added.dtype, device=hessian.device)
    _copy_reversed(hessian, work)
    work.diagonal().add_(added.flip(0))
    lower = work.T
    failed = torch.linalg.cholesky_ex(lower, out=(lower, torch.empty(0, dtype=torch.int32, device=work.device))).info
    if int(failed):
        return None
    _reverse(work.view(-1))
    invert_upper(work.T)
    found = torch.empty(work.shape, dtype=torch.float32, device=work.device).copy_(work.T)
    return found if _is_finite(found) else None


def _is_finite(matrix: torch.Tensor) -> bool:
    return all(bool(torch.isfinite(rows).all()) for rows in matrix.split(_STRIP))


def _copy_reversed(matrix: torch.Tensor, into: torch.Tensor) -> None:
    """`into` becomes `matrix` [n, n] with rows and columns in reverse, in its own type."""
    size = len(matrix)
    for start in range(0, size, _STRIP):
        stop = min(start + _STRIP, size)
        into[start:stop] = matrix[size - stop : size - start].flip(0, 1)


def _reverse(flat: torch.Tensor) -> None:
    """Reverse a vector in place."""
    size, half = len(flat), len(flat) // 2
    for start in range(0, half, _REVERSED):
        stop = min(start + _REVERSED, half)
        front, back = slice(start, stop), slice(size - stop, size - start)
        kept = flat[front].flip(0)
        flat[front] = flat[back].flip(0)
        flat[back] = kept


def invert_upper(matrix: torch.Tensor) -> None:
    """Invert an upper triangular matrix [n, n] in place, by halves: n³ / 3 operations, nearly all matrix products.

    [[A, B], [0, C]]⁻¹ = [[A⁻¹, -A⁻¹·B·C⁻¹], [0, C⁻¹]]. A triangular solve of the identity takes three times as many
    (LAPACK's trtri, which torch does not have, makes the same saving).
    """
    size = len(matrix)
    if size <= _INVERTED_WHOLE:
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        matrix.copy_(torch.linalg.solve_triangular(matrix, identity, upper=True))
        return
    half = size // 2
    invert_upper(matrix[:half, :half])
    invert_upper(matrix[half:, half:])
    _multiply_upper(matrix[:half, :half], matrix[half:, half:], matrix[:half, half:])


def _multiply_upper(left: torch.Tensor, right: torch.Tensor, middle: torch.Tensor) -> None:
    """`middle` [n, m] becomes -left · middle · right, both triangular: rows of zeros are left out of the products."""
    for start in range(0, len(left), _INVERTED_WHOLE):  # from the top: a row needs only those below it
        stop = start + _INVERTED_WHOLE
        middle[start:stop] = left[start:stop, start:] @ middle[start:]
    for stop in range(middle.shape[1], 0, -_INVERTED_WHOLE):  # from the right: a column needs only those before it
        start = max(0, stop - _INVERTED_WHOLE)
        middle[:, start:stop] = -(middle[:, :stop] @ right[:stop, start:stop])


class ColumnRounder(Protocol):
    """What the columns become; it may keep state from one column to the next.

    Attributes:
        group: columns that are prepared together.
    """

    group: int

    def start_group(self, start: int, weights: torch.Tensor) -> None:
        """Called before the columns from `start` are rounded.

        Args:
            start: first column of the group.
            weights: [out, at most `group`], with the errors of all earlier columns already made good; only read.
        """
        ...

    def round(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """The final values [out] of one column, given what feedback has made of it [out]; only reads `values`."""
        ...


@dataclass(frozen=True)
class FeedbackResult:
    """What a sweep gives.

    Attributes:
        weights: [out, in], every column as its rounder gave it.
        loss: float64 scalar, ≈ tr((W - Ŵ)·H·(W - Ŵ)ᵀ) with the damped H: the sum of squared column errors / U[j, j]².
    """

    weights: torch.Tensor
    loss: float


def feedback_sweep(
    weights: torch.Tensor, factor: FeedbackFactor, rounder: ColumnRounder, block: int = 128
) -> FeedbackResult:
    """Round all columns from left to right with error feedback; does not modify `weights`.

    Args:
        weights: [out, in], float32, on the factor's device.
        factor: of this layer's Hessian.
        rounder: what a column becomes.
        block: columns whose errors are gathered before they move the columns beyond; rounded up to a multiple of
            the rounder's group. It changes speed, not the result.
    """
    work = weights.clone()
    rounded = torch.empty_like(work)
    block = -(-block // rounder.group) * rounder.group
    columns, loss = work.shape[1], torch.zeros((), dtype=torch.float64)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = _sweep_block(
            work[:, start:stop], rounded[:, start:stop], factor.upper[start:stop, start:stop], rounder, start
        )
        work[:, stop:] -= errors @ factor.upper[start:stop, stop:]
        loss += errors.square().sum().double().cpu()
    return FeedbackResult(rounded, float(loss))


def _sweep_block(
    work: torch.Tensor, rounded: torch.Tensor, upper: torch.Tensor, rounder: ColumnRounder, first: int
) -> torch.Tensor:
    """Round the columns of one block in place; returns their scaled errors [out, block]."""
    errors = torch.empty_like(work)
    for column in range(work.shape[1]):
        if column % rounder.group == 0:
            rounder.start_group(first + column, work[:, column : column + rounder.group])
        rounded[:, column] = rounder.round(first + column, work[:, column])
        errors[:, column] = (work[:, column] - rounded[:, column]) / upper[column, column]
        work[:, column + 1 :].addr_(errors[:, column], upper[column, column + 1 :], alpha=-1)
    return errors
