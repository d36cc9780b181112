"""What exports of GLM-4.7 take on a cluster that send a text through the model: `gptq`, refined files, the wire.

    python tools/plan_giant.py --work gptq,refine,wire --nodes 1,4,16,64 [--processors 64] [--memory 1.5TB] …

Rates are `giant_rates`'. Which work there is, what waits for what and what travels is that of docs/cluster.md. Torch
has as many threads a worker as make it shortest in a node's memory, and computes so many times faster with them. Left
out: attention's scores, the embedding and the head, the block that predicts ahead, packing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from giant_rates import KIND, Block, Matrix, Rates, blocks_of

from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from giant_cluster import Machines

WORKS = ("gptq", "refine", "wire")
LENGTH = 512  # tokens of a sequence
_PROCESS_BYTES = 350e6  # a worker with numpy and torch imported, as tools/bench_cluster.py's peaks show
_SAMPLED = 1.4  # of a rounding: what predicts it, `makers.refined_time`
_TRIES = 3  # of a wire's scale: two to four
_BATCH, _GPTQ_BATCH = 4, 8  # sequences, of curvature and of passes


@dataclass(frozen=True)
class Cluster:
    """Machines with workers on them.

    Attributes:
        machines: of it.
        threads: that torch has in a worker.
    """

    machines: Machines
    threads: int

    @property
    def workers(self) -> int:
        """That compute with torch."""
        return self.machines.nodes * (self.machines.processors // self.threads)

    @property
    def processors(self) -> int:
        """Of all nodes."""
        return self.machines.nodes * self.machines.processors


@dataclass(frozen=True)
class Phase:
    """A part of the work that ends before the next begins; within it computing, reading and sending overlap.

    Attributes:
        computing: seconds on the cluster's processors, what waits for what included.
        read: bytes from the shared storage.
        sent: bytes over the command's link.
        chain: seconds of it that more nodes do not shorten: the longest piece, or pieces that wait for each other.
    """

    computing: float
    read: float
    sent: float
    chain: float = 0.0

    def times(self, machines: Machines) -> dict[str, float]:
        """Seconds by what they are bound by."""
        reading = max(self.read / (machines.nodes * machines.link), self.read / machines.storage)
        sending = self.sent / min(machines.link, machines.storage)
        return {"processors": self.computing, "reading": reading, "the command's link": sending}

    def seconds(self, machines: Machines) -> float:
        """The longest."""
        return max(self.times(machines).values())


def relay_seconds(each: Sequence[float], steps: int, runners: int) -> float:
    """Of a relay of stages that take `each`, in `steps` parts: as many at once as there are runners.

    A stage begins when the first part has left the one before.
    """
    mean = sum(each) / len(each)
    return max(sum(each) / runners, mean * (len(each) + steps - 1) / steps)


def curvature_phase(blocks: Sequence[Block], rates: Rates, cluster: Cluster, sequences: int) -> Phase:
    """H and G of every block: forwards with all sequences, backwards with every other one."""
    tokens, wide = sequences * LENGTH, blocks[0].matrices[0].columns
    forward = [tokens * (block.multiplies + block.products()) * rates.multiply for block in blocks]
    back = [tokens / 2 * (2 * block.multiplies + block.squares) * rates.multiply for block in blocks]
    computing = sum(
        relay_seconds([seconds / cluster.threads for seconds in each], -(-count // _BATCH), cluster.workers)
        for each, count in ((forward, sequences), (back, sequences // 2))
    )
    activations = 4 * tokens * wide * len(blocks) * (2 + 3 / 2)
    moments = sum(block.moment_bytes() for block in blocks)
    return Phase(computing, 2 * 2 * sum(block.weights for block in blocks), activations + moments)


def pieces_seconds(pieces: Sequence[float], workers: int) -> float:
    """Of pieces that are done by one processor each, as a stack of experts is: no shorter than the longest."""
    return max(sum(pieces) / workers, *pieces)


def refine_phases(blocks: Sequence[Block], rates: Rates, cluster: Cluster) -> list[Phase]:
    """Curvature; then matrices predicted and rounded, a matrix or stack a piece."""
    rate = rates.rows["refine"]
    pieces = [
        (1 + _SAMPLED) * rate.seconds(each) + 2 * rates.factors(each) for block in blocks for each in block.matrices
    ]
    weights, moments = sum(block.weights for block in blocks), sum(block.moment_bytes() for block in blocks)
    rounding = Phase(
        pieces_seconds(pieces, cluster.processors), 2 * (2 * weights + moments), weights * _bits(KIND) / 8, max(pieces)
    )
    return [curvature_phase(blocks, rates, cluster, 64), rounding]


def wire_phases(blocks: Sequence[Block], rates: Rates, cluster: Cluster) -> list[Phase]:
    """Curvature; then layers rounded at each scale tried, a layer a piece."""
    rate = rates.rows["wire"]
    factors = [sum(map(rates.factors, block.inputs())) for block in blocks]
    layers = [sum(map(rate.seconds, block.matrices)) for block in blocks]
    computing = pieces_seconds(factors, cluster.workers) + _TRIES * pieces_seconds(layers, cluster.workers)
    weights, moments = sum(block.weights for block in blocks), sum(block.moment_bytes() for block in blocks)
    written = _TRIES * weights * _bits(GGMLType.Q8_0) / 8
    chain = max(factors) + _TRIES * max(layers)
    rounding = Phase(computing, _TRIES * (2 * weights + moments), written, chain)
    return [curvature_phase(blocks, rates, cluster, 40), rounding]


def gptq_phases(blocks: Sequence[Block], rates: Rates, cluster: Cluster) -> list[Phase]:
    """Block after block; then the stacks' rows, which are encoded plainly."""
    sequences = 64
    tokens, wide, batches = sequences * LENGTH, blocks[0].matrices[0].columns, sequences // _GPTQ_BATCH
    busy = min(cluster.workers, batches)
    walk = chain = 0.0
    for block in blocks:
        through = tokens * (2 * block.multiplies + block.products(stacks=False)) * rates.multiply
        groups = [_group_seconds(block, each, rates) for each in block.inputs(stacks=False)]
        chain += max(groups)
        walk += through / (busy * cluster.threads) + pieces_seconds(groups, cluster.workers)
    sums = batches * sum(block.moment_bytes(stacks=False) for block in blocks) / 2
    weights = sum(block.weights for block in blocks)
    stacks = [rates.rows["plain"].seconds(each) for block in blocks for each in block.matrices if each.is_stack]
    encoding = sum(stacks) / cluster.processors  # rows of a stack are many pieces
    walked = Phase(walk, 2 * busy * 2 * weights, 4 * 4 * tokens * wide * len(blocks) + sums, chain)
    return [walked, Phase(encoding, 2 * weights, weights * _bits(KIND) / 8)]


def _group_seconds(block: Block, first: Matrix, rates: Rates) -> float:
    """Of matrices that read one input: a factor, and their rows."""
    rows = sum(rates.rows["gptq"].seconds(each) for each in block.matrices if each.reads == first.reads)
    return rates.factors(first) + rows


def _bits(kind: GGMLType) -> float:
    """A weight of a type."""
    return 8 * kind.block_bytes / kind.block_size


def node_bytes(work: str, blocks: Sequence[Block], cluster: Cluster) -> float:
    """Peak memory of a node: a block in float32 with its H twice on every worker, or the rounding of a matrix."""
    nodes, stacks = cluster.machines.nodes, work != "gptq"
    stage = max(4 * block.weights + 2 * block.moment_bytes(stacks) for block in blocks)
    largest = max(24 * each.rows * each.columns + 32 * each.columns**2 for block in blocks for each in block.matrices)
    stages = min(cluster.workers, len(blocks) if stacks else 64 // _GPTQ_BATCH)
    rounding = cluster.processors if work == "refine" else cluster.workers
    return max(-(-stages // nodes) * (_PROCESS_BYTES + stage), -(-rounding // nodes) * (_PROCESS_BYTES + largest))


_PHASES = {"gptq": gptq_phases, "refine": refine_phases, "wire": wire_phases}


def walk_rows(
    works: Sequence[str], config: dict[str, Any], rates: Rates, machines: Sequence[Machines], memory: float
) -> list[list[str]]:
    """The cells of a line for each work and cluster, under `giant_cluster.HEADINGS`.

    Args:
        works: of `WORKS`.
        config: of the model.
        rates: of one processor.
        machines: clusters.
        memory: bytes of a node.
    """
    blocks = blocks_of(config)
    return [_row(work, blocks, rates, each, memory) for work in works for each in machines]


def best_threads(work: str, blocks: Sequence[Block], rates: Rates, machines: Machines, memory: float) -> Cluster:
    """With as many threads a worker as make it shortest; one worker a node where none fits into its memory."""
    sizes = [1 << power for power in range(machines.processors.bit_length())]
    clusters = [Cluster(machines, threads) for threads in sizes]
    fitting = [each for each in clusters if node_bytes(work, blocks, each) <= memory] or clusters[-1:]
    return min(fitting, key=lambda each: sum(phase.seconds(machines) for phase in _PHASES[work](blocks, rates, each)))


def _bottleneck(phase: Phase, machines: Machines) -> str:
    times = phase.times(machines)
    name = max(times, key=lambda each: times[each])
    return "one piece after another" if name == "processors" and 2 * phase.chain > phase.computing else name


def _row(work: str, blocks: Sequence[Block], rates: Rates, machines: Machines, memory: float) -> list[str]:
    cluster = best_threads(work, blocks, rates, machines, memory)
    phases = _PHASES[work](blocks, rates, cluster)
    times = [phase.times(machines) for phase in phases]
    bound = {name: sum(each[name] for each in times) for name in times[0]}
    longest = max(phases, key=lambda phase: phase.seconds(machines))
    sent = sum(phase.sent for phase in phases) * (1 - 1 / machines.nodes)
    label = work if work == "wire" else f"{KIND.name}, {work}"
    return [
        f"{label}, {cluster.threads} threads", str(machines.nodes),
        f"{sum(phase.seconds(machines) for phase in phases) / 3600:.2f}", _bottleneck(longest, machines),
        *(f"{seconds / 3600:.2f} h" for seconds in bound.values()),
        f"{sum(phase.read for phase in phases) / 1e9:.0f} GB", f"{sent / 1e9:.0f} GB",
        f"{node_bytes(work, blocks, cluster) / 1e9:.1f} GB",
    ]  # fmt: skip
