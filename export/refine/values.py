"""How a file is refined, which types its tensors got, and what rounding them cost. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.plan import ExportPlan
    from edgepack.gguf.types import GGMLType


@dataclass(frozen=True)
class RefineSettings:
    """How a file is refined.

    Attributes:
        allocation: whether types are allocated; else every tensor keeps the one that its target's mixture gives it.
        feedback: whether matrices are rounded by their curvature; else by the plain encoder with H's diagonal as
            importance.
        on_gpu: whether activations are rounded in blocks of 32 whatever the type, as llama.cpp does on GPUs.
        prefer_speed: whether bytes that every token reads are worth less than others: divergence times time is least.
        two_sided: whether rows that err together are rounded together, where curvature kept G as a matrix.
    """

    allocation: bool = True
    feedback: bool = True
    on_gpu: bool = False
    prefer_speed: bool = False
    two_sided: bool = True

    @property
    def joint(self) -> bool:
        """Whether G is used as a matrix anywhere."""
        return self.feedback and self.two_sided


@dataclass(frozen=True)
class Allocation:
    """A type for every tensor that may have several.

    Attributes:
        kinds: GGUF name → type.
        bytes: of the whole file.
        divergence: predicted, in nats a token: of weights and of the inputs that products round.
    """

    kinds: Mapping[str, GGMLType]
    bytes: int
    divergence: float


@dataclass
class RefinedFile:
    """A rounded model.

    Attributes:
        plan: of the file.
        losses: GGUF name → predicted divergence that rounding its weights costs, in nats a token.
        inputs: predicted divergence of what products round, in nats a token.
        plain: tensors without a curvature, which the plain encoder rounds.
    """

    plan: ExportPlan
    losses: dict[str, float] = field(default_factory=dict)
    inputs: float = 0.0
    plain: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """Predicted divergence of the weights, in nats a token."""
        return sum(self.losses.values())
