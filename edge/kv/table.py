"""What caches cost, as values: bytes a token and divergence of each, and which of them a device may take.

Measuring is `measure`'s; how a GGUF keeps a table `record`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.edge.kv.sizes import BASELINE, row_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.edge.fit.shape import ModelShape

MAX_KL = 0.01  # nats a token, upper end of the interval: what a file may lose by its cache unless its maker says more


@dataclass(frozen=True)
class CacheCost:
    """One cache, held against the baseline of the same file on the same text.

    Attributes:
        name: as `edge.llama.options.kv_types` reads it.
        kl: mean KL(baseline ‖ this) in nats a token.
        kl_high: upper end of its 95 % interval; infinite where one chunk alone was read.
        agreement: share of tokens whose likeliest next token is the same.
        agreement_interval: 95 %.
        perplexity_ratio: of the text's own tokens, this over the baseline.
        original_kl, original_agreement: against the original model, where one was given; the baseline has them too.
    """

    name: str
    kl: float
    kl_high: float
    agreement: float
    agreement_interval: tuple[float, float]
    perplexity_ratio: float
    original_kl: float | None = None
    original_agreement: float | None = None

    @property
    def told(self) -> str:
        """One line for people."""
        if self.kl_high == float("inf"):
            return f"KL {self.kl:.4f} nats a token to {BASELINE} on one chunk of text"
        return f"KL {self.kl:.4f} nats a token to {BASELINE}, at most {self.kl_high:.4f}, as its file states"


@dataclass(frozen=True)
class CacheTable:
    """What every cache costs one file.

    Attributes:
        costs: in the order that they were asked for, the baseline first.
        ctx: tokens of a chunk; the second half of each was scored.
        chunks: how many.
        tokens: that were scored.
        text: the text's name.
        text_sha256: of its UTF-8, hexadecimal.
        engine: what ran the file, with its version.
        max_kl: nats that a device may lose by its cache.
        original: what the original is called; empty where none was given.
        left_out: name → why llama.cpp opens no such cache of this model.
    """

    costs: tuple[CacheCost, ...]
    ctx: int
    chunks: int
    tokens: int
    text: str
    text_sha256: str
    engine: str
    max_kl: float = MAX_KL
    original: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

    def cost(self, name: str) -> CacheCost | None:
        """Of one cache; None where it was not measured."""
        return next((cost for cost in self.costs if cost.name == name), None)

    def smallest(self, shape: ModelShape) -> CacheCost | None:
        """The cache of the fewest bytes a token whose divergence is surely within `max_kl`.

        Of equally small ones the more faithful is taken. None where no cache smaller than the baseline is within.

        Args:
            shape: the model, whose heads say what a token takes.
        """
        most = row_bytes(shape, BASELINE)
        within = [
            (row_bytes(shape, cost.name), cost.kl_high, cost)
            for cost in self.costs
            if cost.kl_high <= self.max_kl and row_bytes(shape, cost.name) < most
        ]
        return min(within, key=lambda one: one[:2])[2] if within else None

    def json(self, shape: ModelShape | None = None) -> dict[str, Any]:
        """For people's programs; with `shape` the bytes a token too, and which cache a device would take."""
        chosen = None if shape is None else self.smallest(shape)
        return {
            "ctx": self.ctx,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "text": self.text,
            "text_sha256": self.text_sha256,
            "engine": self.engine,
            "max_kl": self.max_kl,
            "original": self.original or None,
            "left_out": dict(self.left_out),
            "caches": [_cost_json(cost, shape) for cost in self.costs],
            **({} if shape is None else {"smallest_within": None if chosen is None else chosen.name}),
        }


def _cost_json(cost: CacheCost, shape: ModelShape | None) -> dict[str, Any]:
    told: dict[str, Any] = {"kv_type": cost.name}
    if shape is not None:
        told["bytes_per_token"] = row_bytes(shape, cost.name)
    told |= {
        "kl": cost.kl,
        "kl_high": cost.kl_high if cost.kl_high < float("inf") else None,
        "agreement": cost.agreement,
        "agreement_interval": list(cost.agreement_interval),
        "perplexity_ratio": cost.perplexity_ratio,
    }
    if cost.original_kl is not None:
        told |= {"original_kl": cost.original_kl, "original_agreement": cost.original_agreement}
    return told
