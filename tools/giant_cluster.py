"""What an export of GLM-4.7 takes on a cluster: hours, bytes moved, memory of a node, and the bottleneck.

    python tools/plan_giant.py q4km --nodes 1,4,16,64 [--processors 64] [--link 1.25GB] [--storage 5GB] [--figure NAME]

Rates of encoding are measured on this machine, a chunk of each type; processors, links and the shared storage's rate
are what is given. Reading, computing and writing overlap, so the longest of them is the time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.export.crew_chunks import encode_spans, piece_bytes, sample_spans
from edgepack.pipeline.cluster.forecast import predicted_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.plan import ExportPlan

_PROCESS_BYTES = 350e6  # a worker with numpy and torch imported, as tools/bench_cluster.py's peaks show


@dataclass(frozen=True)
class Machines:
    """A cluster on paper.

    Attributes:
        nodes: how many.
        processors: of each.
        link: bytes a second of a node's network.
        storage: bytes a second that the shared folder gives to all together.
    """

    nodes: int
    processors: int
    link: float
    storage: float


@dataclass(frozen=True)
class Times:
    """What parts of the work take, in seconds.

    Attributes:
        encoding: on all processors.
        reading: over the nodes' links, or by the storage where that is slower.
        sending: encoded rows, over the link of the node that writes, and its writing to the storage.
    """

    encoding: float
    reading: float
    sending: float

    @property
    def all(self) -> float:
        """The longest, as they overlap."""
        return max(self.encoding, self.reading, self.sending)

    @property
    def bottleneck(self) -> str:
        """Which that is."""
        named = {"processors": self.encoding, "reading the weights": self.reading, "the writer's link": self.sending}
        return max(named, key=lambda name: named[name])


def measured_rates(plan: ExportPlan) -> dict[str, float]:
    """Type → seconds a million weights on one processor of this machine; process time, the better of two tries."""
    rates = {}
    for name, piece in sample_spans(plan.tensors).items():
        taken = []
        for _ in range(2):
            began = time.process_time()
            encode_spans(plan.tensors, piece)
            taken.append(time.process_time() - began)
        weights = sum((stop - start) * plan.tensors[number].info.shape[-1] for number, start, stop in piece)
        rates[name] = 1e6 * min(taken) / weights
    return rates


def times(plan: ExportPlan, rates: Mapping[str, float], machines: Machines) -> Times:
    """What the export of a plan takes; one node alone sends nothing."""
    encoding = predicted_seconds(plan, rates) / (machines.nodes * machines.processors)
    reading = max(plan.source_bytes / (machines.nodes * machines.link), plan.source_bytes / machines.storage)
    sent = plan.total_bytes * (1 - 1 / machines.nodes)
    return Times(encoding, reading, max(sent, plan.total_bytes) / min(machines.link, machines.storage))


def node_bytes(plan: ExportPlan, machines: Machines) -> float:
    """Peak memory of a node: a process and a piece for each processor."""
    piece = max(piece_bytes(plan.tensors, each) for each in sample_spans(plan.tensors).values())
    return machines.processors * (_PROCESS_BYTES + piece)


HEADINGS = (
    "target", "nodes", "hours", "bottleneck", "encoding", "reading", "writing", "read", "sent", "memory a node",
)  # fmt: skip


def cluster_rows(plan: ExportPlan, machines: list[Machines]) -> list[list[str]]:
    """The cells of a line for each cluster."""
    rates = measured_rates(plan)
    found = []
    for each in machines:
        taken = times(plan, rates, each)
        hours = [f"{seconds / 3600:.2f} h" for seconds in (taken.encoding, taken.reading, taken.sending)]
        found.append([
            plan.target.label, str(each.nodes), f"{taken.all / 3600:.2f}", taken.bottleneck, *hours,
            f"{plan.source_bytes / 1e9:.0f} GB", f"{plan.total_bytes * (1 - 1 / each.nodes) / 1e9:.0f} GB",
            f"{node_bytes(plan, each) / 1e9:.1f} GB",
        ])  # fmt: skip
    return found
