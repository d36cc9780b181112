"""What a run of one or more candidates gives, as values that reports, certificates and commands share.

It measures and opens nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.reconstruction import reconstruction_gates

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepack.edge.fidelity.gates import GateResult, Gates
    from edgepack.edge.fidelity.greedy import GreedyAgreement
    from edgepack.edge.fidelity.scorers.scorer import Chunking
    from edgepack.edge.fidelity.validate import Validation


@dataclass(frozen=True)
class WeightError:
    """How far a tensor of the file is from the original's.

    Attributes:
        name: GGUF name.
        type: the file's type.
        relative_error: ‖Ŵ − W‖ / ‖W‖ (Frobenius); infinite where the file's tensor is no number.
        suspect: far beyond what its type explains.
        is_matrix: whether it has more than one row and column: norms and biases do not.
    """

    name: str
    type: str
    relative_error: float
    suspect: bool
    is_matrix: bool = True


@dataclass(frozen=True)
class FileFindings:
    """What a file's contents tell.

    Attributes:
        weights: every tensor, in file order.
        differences: one line for each setting or tensor that differs in what it says, not in precision.
    """

    weights: tuple[WeightError, ...]
    differences: tuple[str, ...]

    @property
    def suspicions(self) -> list[str]:
        """What a reader should look at first."""
        lines = [
            f"tensor '{weight.name}' ({weight.type}): relative error {weight.relative_error:.3g}"
            for weight in self.weights
            if weight.suspect
        ]
        return [*self.differences, *lines]


@dataclass(frozen=True)
class Text:
    """What is scored.

    Attributes:
        text: itself.
        origin: a file's name, or how it was made.
    """

    text: str
    origin: str

    @property
    def sha256(self) -> str:
        """Digest of its UTF-8 bytes, hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Candidate:
    """A file that was held against the reference.

    Attributes:
        path: the file as it was named.
        bytes: its length.
        model: the GGUF that was run: the same file, or what an archive was installed as.
        validation: what scoring gave.
        findings: what its contents tell; None where nobody asked.
        greedy: how long it writes what the reference writes; None where that was not measured.
    """

    path: Path
    bytes: int
    model: Path
    validation: Validation
    findings: FileFindings | None = None
    greedy: GreedyAgreement | None = None

    def gate_results(self, gates: Gates) -> list[GateResult]:
        """How every gate went: those on what it says, then those on its weights."""
        return [*self.validation.gate_results(gates), *reconstruction_gates(self.findings, gates)]

    def passed(self, gates: Gates) -> bool:
        """Whether every gate is cleared."""
        return all(result.passed for result in self.gate_results(gates))


@dataclass(frozen=True)
class FidelityRun:
    """What a run gives.

    Attributes:
        candidates: in the order asked for.
        chunking: as it was used.
        text: what was scored.
        reference: label of the reference.
        floor: the reference held against itself in other arithmetic, on the first chunks: what 100 % would be.
    """

    candidates: tuple[Candidate, ...]
    chunking: Chunking
    text: Text
    reference: str
    floor: tuple[Validation, ...] = ()

    def only(self, candidate: Candidate) -> FidelityRun:
        """The run as if `candidate` had been the only one."""
        return replace(self, candidates=(candidate,))


def pareto_front(sizes: Sequence[float], divergences: Sequence[float]) -> list[bool]:
    """Which candidates no other one beats: smaller and at least as faithful, or as small and more faithful."""
    pairs = list(zip(sizes, divergences, strict=True))
    return [not any(b <= size and d <= kl and (b, d) != (size, kl) for b, d in pairs) for size, kl in pairs]
