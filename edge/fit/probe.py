"""Measures how fast this CPU generates with a model's own layers, without the model: two seconds, then cached.

A twin of the model is written as a sparse file: its metadata, some of its layers, no contents. Timing it through
llama.cpp measures what decides the speed, the bandwidth with which *these* tensor types are read and multiplied
on *this* CPU, and the cost of each layer beside it. How speed follows from it is `fit_speed`'s.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.evaluation_time import evaluation_seconds
from edgepack.edge.fit.devices import cpu_name
from edgepack.edge.fit.twin_metadata import twin_metadata
from edgepack.edge.install.cache_folder import cache_folder
from edgepack.edge.llama.cpu_threads import best_threads
from edgepack.edge.llama.engines import choose_engine, installed
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.files.output import atomic_output
from edgepack.gguf.types import Value, ValueType, u32
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.edge.fit.shape import ModelShape
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import TensorInfo

_WHOLE_BYTES = 256 * 2**20  # a model up to this size is its own twin
_TIMED_SECONDS = 0.8
_TIMED_TOKENS = 128  # as llama-bench's tg128: attention over the cache is part of the time


@dataclass(frozen=True)
class ProbePoint:
    """One twin: bytes that it reads per token, and the seconds that a token took (median)."""

    layers: int
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class CpuProbe:
    """Twins with a few and with more layers, which give a straight line; one twin where the model is small."""

    points: tuple[ProbePoint, ...]

    def seconds_per_token(self, shape: ModelShape) -> float:
        """Seconds that one token of the whole model takes."""
        last = self.points[-1]
        if len(self.points) == 1 or last.layers == len(shape.layers):
            return last.seconds
        first = self.points[0]
        slope = max(last.seconds - first.seconds, 0.0) / (last.nbytes - first.nbytes)
        return last.seconds + slope * (shape.bytes_per_token - last.nbytes)

    @property
    def bandwidth(self) -> float:
        """Bytes of weights per second, everything that a token costs included."""
        return self.points[-1].nbytes / self.points[-1].seconds


def can_probe() -> bool:
    """Whether the engine that evaluates single tokens is installed."""
    return installed("llama-cpp-python")


def probe_cpu(header: GGUFHeader, shape: ModelShape, threads: int = 0) -> CpuProbe:
    """Time the twins of a model, or take the cached result of an earlier call on this machine.

    Args:
        header: the model's.
        shape: the same, read.
        threads: for generation; 0 is what `best_threads` says.
    """
    threads = threads or best_threads(shape.bytes_per_token)
    path = cache_folder() / "probes" / f"{_key(header, threads)}.json"
    if (cached := _read(path)) is not None:
        return cached
    points = tuple(_time_twin(header, shape, layers, threads) for layers in _layer_counts(shape))
    probe = CpuProbe(points)
    path.parent.mkdir(exist_ok=True)
    with atomic_output(path) as stream:
        stream.write(json.dumps(asdict(probe)).encode())
    return probe


def _read(path: Path) -> CpuProbe | None:
    try:
        return CpuProbe(tuple(ProbePoint(**point) for point in json.loads(path.read_text())["points"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or not ours: measure again


def _key(header: GGUFHeader, threads: int) -> str:
    engine = choose_engine("llama-cpp-python").facts()
    tensors = [(tensor.name, tensor.shape, int(tensor.type)) for tensor in header.tensors]
    text = repr((tensors, threads, cpu_name(), engine.version, engine.build))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _layer_counts(shape: ModelShape) -> Sequence[int]:
    count = len(shape.layers)
    if shape.nbytes <= _WHOLE_BYTES or shape.simulated is not None:  # layers that depend on others are not taken out
        return (count,)
    layer = max(shape.nbytes // max(count, 1), 1)
    more = max(3, min(count, _WHOLE_BYTES // layer))
    return (1, more) if more < count else (count,)


def _time_twin(header: GGUFHeader, shape: ModelShape, layers: int, threads: int) -> ProbePoint:
    chosen = [round(i * (len(shape.layers) - 1) / max(layers - 1, 1)) for i in range(layers)]
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        path = write_twin(header, shape, chosen, Path(folder) / "twin.gguf")
        n_ctx = min(shape.n_ctx_train, 512)
        with LoadedModel(path, RuntimeOptions(n_ctx=n_ctx, threads=threads, max_outputs=1)) as model:
            seconds = _seconds_per_token(model, min(_TIMED_TOKENS, n_ctx - 2))
    return ProbePoint(layers, shape.output_bytes + sum(shape.layers[i].active_bytes for i in chosen), seconds)


def _seconds_per_token(model: LoadedModel, count: int) -> float:
    """The median over rounds of `count` single tokens, fewer where one round alone would take too long."""
    tokens = [np.zeros(1, np.int32)] * count
    first = evaluation_seconds(model, tokens[:4]) / 4  # a warm-up, and a first idea
    tokens = tokens[: max(4, min(count, int(_TIMED_SECONDS / first)))]
    rounds: list[float] = []
    began = time.perf_counter()
    while not rounds or (time.perf_counter() - began < _TIMED_SECONDS and len(rounds) < 9):
        rounds.append(evaluation_seconds(model, tokens) / len(tokens))
    return sorted(rounds)[len(rounds) // 2]


def write_twin(header: GGUFHeader, shape: ModelShape, chosen: Sequence[int], path: Path) -> Path:
    """Write a sparse GGUF with the `chosen` layers of a model, renumbered, and without its vocabulary."""
    with path.open("wb") as stream:
        writer = GGUFWriter(stream, _twin_metadata(header, shape, chosen), _twin_tensors(header, chosen))
        writer.write_header()
        stream.truncate(writer.total_bytes)
    return path


def _twin_metadata(header: GGUFHeader, shape: ModelShape, chosen: Sequence[int]) -> dict[str, Value]:
    layers = header.get(f"{shape.architecture}.block_count")
    kept = twin_metadata(header, shape.n_vocab)
    kept.pop(f"{shape.architecture}.nextn_predict_layers", None)
    for key, value in kept.items():
        if isinstance(value.value, list) and len(value.value) == layers:
            kept[key] = Value(ValueType.ARRAY, [value.value[i] for i in chosen], value.item_type)
    return kept | {f"{shape.architecture}.block_count": u32(len(chosen))}


def _twin_tensors(header: GGUFHeader, chosen: Sequence[int]) -> list[TensorInfo]:
    places = {layer: [new for new, old in enumerate(chosen) if old == layer] for layer in chosen}
    found = []
    for tensor in header.tensors:
        match = re.match(r"blk\.(\d+)\.(.+)", tensor.name)
        if match is None:
            found.append(tensor)
            continue
        found += [replace(tensor, name=f"blk.{new}.{match[2]}") for new in places.get(int(match[1]), [])]
    return found
