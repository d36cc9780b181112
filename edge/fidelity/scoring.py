"""How text is scored: options, the device's own scorers, the text that a reference writes, its noise, its chunking.

A reference that needs torch is opened by `pipeline.fidelity`; agreement is measured in `validate`.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.run import Text
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.validate import Validation, validate
from edgepack.errors import UsageError
from edgepack.files.source import read_small
from edgepack.processors import default_threads
from edgepack.progress import silent
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.fidelity.scorers.gguf import GGUFScorer
    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.edge.fidelity.scorers.stored import StoredScorer
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.progress import Progress

SAMPLED_SEQUENCES, SAMPLED_LENGTH = 128, 192  # 24,000 tokens in 191 steps; small models are lost in longer texts
FLOOR_PRECISIONS = ("bfloat16", "float16")
FLOOR_TOKENS = 2000


@dataclass(frozen=True)
class ScoringOptions:
    """How text is scored.

    Attributes:
        ctx: chunk length; None finds the longest that the reference makes use of, at most 512.
        stride: a sliding window of this step; None is llama.cpp's way.
        max_chunks: not more chunks than this; None is all.
        threads: cores in all, shared by the two sides; 0 is every core.
        kv_type: of llama.cpp's cache; `f32` measures the file alone.
        n_gpu_layers: llama.cpp's layers on the GPU.
        floor: measure the reference's own noise too.
        blockwise: load a checkpoint block by block; None decides by the machine's memory.
        greedy: beginnings of the text that both models continue on their own; 0 is none.
        adapters: LoRA files that every candidate runs with, beside those in its own archive.
        trust: whose archives are taken; the user's trust store by default.
    """

    ctx: int | None = None
    stride: int | None = None
    max_chunks: int | None = None
    threads: int = 0
    kv_type: str = "f32"
    n_gpu_layers: int = 0
    floor: bool = False
    blockwise: bool | None = None
    greedy: int = 0
    adapters: tuple[Path, ...] = ()
    trust: TrustPolicy | None = None

    @property
    def longest(self) -> int:
        """The longest chunk that may come."""
        from edgepack.edge.fidelity.context import LONGEST

        return self.ctx or LONGEST

    def shares(self) -> tuple[int, int]:
        """Threads of the reference and of the candidates, which run at the same time."""
        cores = self.threads or default_threads()
        return max(1, cores // 2), max(1, cores - cores // 2)


def open_stored(path: Path) -> StoredScorer:
    """The scorer of a stored reference; raises as `stored_reference.decode`."""
    from edgepack.edge.fidelity.scorers.stored import StoredScorer
    from edgepack.edge.fidelity.stored_reference import MAX_BYTES, decode

    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise UsageError(f"stored reference '{path}': expected a file of at most {MAX_BYTES} bytes")
    return StoredScorer(decode(read_small(path, UsageError, MAX_BYTES), str(path)), f"{path.name} (stored)")


def open_candidate(
    path: Path, options: ScoringOptions, threads: int | None = None, progress: Progress = silent
) -> GGUFScorer:
    """The scorer of a GGUF or of an `.edgepack`, which is installed in this machine's cache first.

    Raises:
        UsageError: there is no such file.
        AdapterError: an adapter was made for another model.
        GGUFError, ArchiveError, IntegrityError: it is not sound.
    """
    from edgepack.edge.fidelity.scorers.gguf import GGUFScorer
    from edgepack.edge.install.model_file import prepare
    from edgepack.edge.llama.check import check_adapter

    prepared = prepare(path, trust=options.trust, progress=progress)
    for adapter in (*prepared.adapters, *options.adapters):
        check_adapter(adapter, prepared.header, prepared.path)
    return GGUFScorer(
        prepared.path,
        options.longest,
        threads=options.shares()[1] if threads is None else threads,
        n_gpu_layers=options.n_gpu_layers,
        kv_type=options.kv_type,
        adapters=(*prepared.adapters, *options.adapters),
        name=path.name,
    )


def sample_text(reference: Scorer) -> Text:
    """Text that the reference writes itself: what is scored when none is given. Needs no network.

    Raises:
        UsageError: the reference cannot write.
    """
    sample = getattr(reference, "sample", None)
    if sample is None:
        raise UsageError("text: give some with --text, this reference cannot write its own")
    length = min(SAMPLED_LENGTH, reference.context_limit)
    return Text(sample(SAMPLED_SEQUENCES, length), f"{SAMPLED_SEQUENCES} samples of the reference, seed 0")


def measure_floor(
    reference: Scorer, text: str, chunking: Chunking, progress: Progress = silent
) -> tuple[Validation, ...]:
    """The reference against itself in bfloat16 and float16, on the first chunks; empty where it has no such self."""
    in_precision = getattr(reference, "in_precision", None)
    if in_precision is None:
        return ()
    tokens = len(reference.tokenizer.tokenize(text))
    each = max(1, chunking.scored(tokens) // chunking.count(tokens))
    few = min(chunking.count(tokens), -(-FLOOR_TOKENS // each))
    chunking = replace(chunking, max_chunks=few)
    floor = []
    for precision in FLOOR_PRECISIONS:
        with closing(in_precision(precision)) as same:
            floor += validate(reference, [same], text, chunking, progress)
    return tuple(floor)


def choose_chunking(reference: Scorer, text: str, options: ScoringOptions) -> Chunking:
    """The chunking that the options ask for; without a length, the longest that the reference makes use of.

    A stored reference has its own.
    """
    from edgepack.edge.fidelity.context import usable_context
    from edgepack.edge.fidelity.scorers.stored import StoredScorer

    if isinstance(reference, StoredScorer):
        chunks, ctx = reference.stored.tokens.shape
        return Chunking(options.ctx or ctx, options.stride, min(options.max_chunks or chunks, chunks))
    chunking = Chunking(options.ctx or options.longest, options.stride, options.max_chunks)
    if options.ctx is not None:
        return chunking
    return replace(chunking, ctx=usable_context(reference, reference.tokenizer.tokenize(text)))


def text_to_score(path: Path) -> Text:
    """A file's text with its name; raises as `read_text`."""
    return Text(read_text(path), path.name)
