"""What an export will take on a cluster, from the rates of one piece of each type: time, traffic and memory.

The pieces are measured by the crew itself; what they are is `export.crew_chunks`'.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from edgepack.export.crew_chunks import encode_spans, piece_bytes, sample_spans

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.export.crew_chunks import Spans
    from edgepack.export.plan import ExportPlan, PlannedTensor
    from edgepack.pipeline.cluster.crew import ClusterCrew
    from edgepack.pipeline.outline import Json


@dataclass(frozen=True)
class Forecast:
    """A prediction.

    Attributes:
        seconds: of the encoding, with every processor at work.
        processors: of the cluster.
        nodes: how many.
        read_bytes: of weights, by all nodes together.
        sent_bytes: of encoded rows, to the one that writes.
        peak_bytes: of memory that a piece of work takes on a node, beside its process.
        rates: type → seconds a million weights on one processor, measured.
    """

    seconds: float
    processors: int
    nodes: int
    read_bytes: int
    sent_bytes: int
    peak_bytes: int
    rates: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Json]:
        """What scripts read."""
        return {
            "predicted": {
                "seconds": round(self.seconds, 3), "processors": self.processors, "read_bytes": self.read_bytes,
                "sent_bytes": self.sent_bytes, "peak_bytes": self.peak_bytes,
                "seconds_a_million_weights": {name: round(rate, 6) for name, rate in self.rates.items()},
            },
            "nodes": self.nodes,
        }  # fmt: skip


def measured_piece(tensors: Sequence[PlannedTensor], piece: Spans) -> float:
    """Seconds that a piece takes, its second time: the first one reads the file into memory; what a worker does."""
    encode_spans(tensors, piece)
    began = time.process_time()
    encode_spans(tensors, piece)
    return time.process_time() - began


def forecast(plan: ExportPlan, crew: ClusterCrew) -> Forecast:
    """Predict the export of a plan; one piece of each type is encoded by a worker, nothing is written."""
    size, tensors = crew.backend.size(), plan.tensors
    pieces = sample_spans(tensors)
    context = crew.share(tuple(tensors))
    seconds = crew.map(measured_piece, context, pieces.values(), need=lambda piece: piece_bytes(tensors, piece))
    rates = {}
    for (name, piece), taken in zip(pieces.items(), seconds, strict=True):
        weights = sum((stop - start) * tensors[number].info.shape[-1] for number, start, stop in piece)
        rates[name] = 1e6 * taken / weights
    total = predicted_seconds(plan, rates)
    peak = max(piece_bytes(tensors, piece) for piece in pieces.values())
    sent = sum(tensor.info.nbytes for tensor in tensors)
    return Forecast(total / size.processors, size.processors, size.nodes, plan.source_bytes, sent, peak, rates)


def predicted_seconds(plan: ExportPlan, rates: Mapping[str, float]) -> float:
    """Of one processor for all of a plan; rates in seconds a million weights of each type."""
    return sum(prod(tensor.info.shape) * rates[tensor.info.type.name] for tensor in plan.tensors) / 1e6
