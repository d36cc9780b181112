"""Measures what every type of cache costs a file: the same text through llama.cpp with each of them.

Bytes are `sizes`'; what follows from the figures is `table`'s.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgepack.edge.fidelity.agreement import compare
from edgepack.edge.fidelity.predictions import predictions
from edgepack.edge.fidelity.statistics import ClusteredMean
from edgepack.edge.kv.sizes import BASELINE
from edgepack.edge.kv.table import CacheCost
from edgepack.edge.llama.options import RuntimeOptions, kv_types
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.errors import ModelRuntimeError
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.agreement import TokenMeasures, TruncatedPredictions
    from edgepack.edge.fidelity.scorers.scorer import Chunk, Scorer
    from edgepack.edge.llama.options import Adapter
    from edgepack.progress import Progress

BATCH = 512  # tokens evaluated at once, as `run` and `serve` do
Predictions: TypeAlias = "NDArray[np.float32] | TruncatedPredictions"


@dataclass(frozen=True)
class ChunkSums:
    """One cache's sums over one chunk's scored tokens; those against the original only where there is one."""

    kl: float
    agreeing: float
    loss: float
    original_kl: float | None = None
    original_agreeing: float | None = None


@dataclass
class CacheSums:
    """One cache's sums over all chunks so far."""

    kl: ClusteredMean = field(default_factory=ClusteredMean)
    agreement: ClusteredMean = field(default_factory=ClusteredMean)
    loss: ClusteredMean = field(default_factory=ClusteredMean)
    original_kl: ClusteredMean = field(default_factory=ClusteredMean)
    original_agreement: ClusteredMean = field(default_factory=ClusteredMean)

    def add(self, sums: ChunkSums, tokens: int) -> None:
        """Take in a chunk of `tokens` scored tokens."""
        self.kl.add(sums.kl, tokens)
        self.agreement.add(sums.agreeing, tokens)
        self.loss.add(sums.loss, tokens)
        if sums.original_kl is not None and sums.original_agreeing is not None:
            self.original_kl.add(sums.original_kl, tokens)
            self.original_agreement.add(sums.original_agreeing, tokens)

    def cost(self, name: str) -> CacheCost:
        """What they say of the cache called `name`."""
        against = self.original_kl.tokens > 0
        baseline = name == BASELINE
        return CacheCost(
            name,
            self.kl.mean,
            0.0 if baseline else self.kl.interval()[1],
            self.agreement.mean,
            (1.0, 1.0) if baseline else self.agreement.share_interval(),
            math.exp(min(self.loss.mean, 700.0)),
            self.original_kl.mean if against else None,
            self.original_agreement.mean if against else None,
        )


class Caches:
    """A file opened once, and read with one cache after another.

    Attributes:
        model: the file with the baseline's cache.

    Args:
        path: a plain GGUF that says what comes next.
        ctx: tokens of the longest chunk.
        threads: 0 is every core that is free.
        n_gpu_layers: layers on the GPU; -1 is all.
        adapters: LoRAs that belong to the file.

    Raises:
        ModelRuntimeError: llama.cpp refuses the file.
    """

    def __init__(
        self, path: Path, ctx: int, *, threads: int = 0, n_gpu_layers: int = 0, adapters: tuple[Adapter, ...] = ()
    ) -> None:
        self._path, self._ctx, self._threads, self._layers = path, ctx, threads, n_gpu_layers
        self._adapters = adapters
        self.model = LoadedModel(path, self._options(BASELINE))

    def _options(self, name: str) -> RuntimeOptions:
        k, v = kv_types(name)
        return RuntimeOptions(
            n_ctx=self._ctx, n_batch=min(BATCH, self._ctx), threads=self._threads, kv_type_k=k, kv_type_v=v,
            n_gpu_layers=self._layers, flash_attention="on", adapters=self._adapters,
        )  # fmt: skip

    def logits(self, name: str, chunk: Chunk) -> NDArray[np.float32]:
        """Logits [chunk.scored, vocabulary] with the cache called `name`, flash attention on, as a device reads it.

        Raises:
            ModelRuntimeError: llama.cpp opens no such cache of this model.
        """
        with closing(LoadedModel(self._path, self._options(name), beside=self.model)) as model:
            return model.logits(chunk.tokens, chunk.first)[:-1]

    def open_problem(self, name: str) -> str:
        """Why llama.cpp opens no such cache of this model; empty where it does."""
        try:
            LoadedModel(self._path, self._options(name), beside=self.model).close()
        except ModelRuntimeError as error:
            return str(error).rpartition(": ")[2]
        return ""

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Token ids [n] of `text`, with BOS in front where the file wants it."""
        return np.array(self.model.tokenize(text), dtype=np.int32)

    @property
    def bos(self) -> int | None:
        """The token that begins every chunk, or None."""
        vocabulary = self.model.vocabulary
        return vocabulary.bos if vocabulary.adds_bos and vocabulary.bos >= 0 else None

    @property
    def n_ctx_train(self) -> int:
        """The context that the model was trained with."""
        return self.model.n_ctx_train

    @property
    def n_vocab(self) -> int:
        """Width of a row of logits."""
        return self.model.n_vocab

    def close(self) -> None:
        """Free the model."""
        self.model.close()


def measure_caches(
    caches: Caches,
    names: Sequence[str],
    chunks: Sequence[Chunk],
    *,
    original: Scorer | None = None,
    kept: KeptChunks | None = None,
    progress: Progress = silent,
) -> list[CacheCost]:
    """Read every chunk with every cache and hold it against the baseline; memory is two chunks' logits.

    Args:
        caches: the opened file.
        names: of caches that it opens; the baseline is read in any case.
        chunks: of a text; those that are kept already are not read again.
        original: what the file was made of; its token ids must be the file's.
        kept: where finished chunks are kept.
        progress: told of each cache of each chunk.

    Returns:
        One cost a cache, the baseline first.

    Raises:
        NumericError: NaN or +inf among the logits.
        CheckFailedError: the original's vocabulary has another size.
    """
    wanted = [BASELINE, *(name for name in names if name != BASELINE)]
    sums = {name: CacheSums() for name in wanted}
    known = {} if kept is None else kept.read(wanted)
    left = [chunk for chunk in chunks if chunk.index not in known]
    with (
        progress("measuring caches", len(left) * len(wanted), " evaluations") as advance,
        closing(_expected(original, left)) as expected,
    ):
        for chunk in chunks:
            found = known.get(chunk.index)
            if found is None:
                found = {}
                for name, one in _read_chunk(caches, wanted, chunk, next(expected)):
                    found[name] = one
                    advance(1)
                if kept is not None:
                    kept.add(chunk.index, found)
            for name, one in found.items():
                sums[name].add(one, chunk.scored)
    return [sums[name].cost(name) for name in wanted]


def _expected(original: Scorer | None, chunks: Sequence[Chunk]) -> Generator[Predictions | None, None, None]:
    """What the original says of each chunk, read in batches where it is read by blocks; None without one."""
    if original is None:
        yield from repeat(None)
        return
    for _chunk, found in predictions(original, iter(chunks)):
        yield found


def _read_chunk(
    caches: Caches, names: Sequence[str], chunk: Chunk, expected: Predictions | None
) -> Iterator[tuple[str, ChunkSums]]:
    baseline = caches.logits(BASELINE, chunk)
    targets, start = chunk.scored_targets, chunk.start + chunk.first
    for name in names:
        got = baseline if name == BASELINE else caches.logits(name, chunk)
        own = compare(baseline, got, targets, start)
        loss = float((own.reference_target - own.candidate_target).sum())
        yield (
            name,
            ChunkSums(
                *_sums(own), loss, *(_sums(compare(expected, got, targets, start)) if expected is not None else ())
            ),
        )


def _sums(measures: TokenMeasures) -> tuple[float, float]:
    return float(measures.divergence.sum()), float(measures.agrees.sum())


class KeptChunks:
    """Finished chunks of a measurement in a file of lines, so that one that was interrupted goes on.

    Args:
        path: of the file; made when the first chunk is done.
        key: what two measurements must share for one to go on with the other.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path, self._head = path, json.dumps({"key": dict(key)}, sort_keys=True)

    def read(self, names: Sequence[str]) -> dict[int, dict[str, ChunkSums]]:
        """Number of each chunk that is done with all of `names` → its sums; nothing of another measurement."""
        try:
            head, *lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError, ValueError):
            return {}
        if head != self._head:
            self.remove()
            return {}
        found = {}
        for line in lines:
            with suppress(ValueError, TypeError, KeyError, AttributeError):  # torn by a kill
                told = json.loads(line)
                found[int(told["chunk"])] = {name: ChunkSums(**told["caches"][name]) for name in names}
        return found

    def add(self, chunk: int, sums: Mapping[str, ChunkSums]) -> None:
        """Keep one chunk."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        head = "" if self._path.exists() else self._head
        told = {"chunk": chunk, "caches": {name: vars(one) for name, one in sums.items()}}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"{head}\n{json.dumps(told)}")  # a line that a kill tore stays a line of its own
            stream.flush()
            os.fsync(stream.fileno())

    def remove(self) -> None:
        """Forget it all."""
        self._path.unlink(missing_ok=True)
