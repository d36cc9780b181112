"""What a refined file is to reach, as its maker and the searches say it to each other. A value only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Aim:
    """What a refined file is to reach.

    Attributes:
        budget: bytes of the GGUF, at most.
        divergence: predicted, in nats a token: the least bytes with it; None where the budget decides.
        rate: nats a token that a bit in the archive is worth; 0 where none counts.
        free: how many matrices are rounded without the rate: those that it costs most.
    """

    budget: int
    divergence: float | None = None
    rate: float = 0.0
    free: int = 0
