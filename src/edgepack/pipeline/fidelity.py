"""Opens reference, candidates and text for a validation and runs it: what `edgepack validate` and its like share.

Measuring is left to `edge`, printing to `cli`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.greedy import PROMPTS, greedy_agreement
from edgepack.edge.fidelity.run import Candidate, FidelityRun, Text
from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fidelity.validate import Validation, validate
from edgepack.errors import DependencyError, UsageError
from edgepack.pipeline.text import text_to_score
from edgepack.processors import default_threads
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgepack.edge.fidelity.scorers.gguf import GGUFScorer
    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.edge.fidelity.scorers.stored import StoredScorer
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress

SAMPLED_SEQUENCES, SAMPLED_LENGTH = 128, 192  # 24,000 tokens in 191 steps; small models are lost in longer texts
FLOOR_PRECISIONS = ("bfloat16", "float16")
FLOOR_TOKENS = 2000
_MEMORY_SHARE = 0.7  # of the machine's memory, for weights; the rest is for logits and the candidate


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
    """

    ctx: int | None = None
    stride: int | None = None
    max_chunks: int | None = None
    threads: int = 0
    kv_type: str = "f32"
    n_gpu_layers: int = 0
    floor: bool = True
    blockwise: bool | None = None
    greedy: int = PROMPTS
    adapters: tuple[Path, ...] = ()

    @property
    def longest(self) -> int:
        """The longest chunk that may come."""
        from edgepack.edge.fidelity.context import LONGEST

        return self.ctx or LONGEST

    def shares(self) -> tuple[int, int]:
        """Threads of the reference and of the candidates, which run at the same time."""
        cores = self.threads or default_threads()
        return max(1, cores // 2), max(1, cores - cores // 2)


def open_reference(path: Path, options: ScoringOptions) -> Scorer:
    """The scorer of a Hugging Face folder (torch, float32), of a GGUF (llama.cpp) or of a stored reference.

    Raises:
        DependencyError: torch or transformers is not installed.
        UsageError: there is no such file or folder.
    """
    if path.suffix == ".edgeref":
        return open_stored(path)
    if path.is_file():
        return open_candidate(path, options, options.shares()[0])
    if not path.is_dir():
        raise UsageError(f"reference '{path}': no such file or folder")
    try:
        from edgepack.edge.fidelity.scorers.torch import TorchScorer
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the reference runs in torch: '{error.name}' is not installed, use pip install 'edgepack[compress]'"
        ) from None
    if options.blockwise or (options.blockwise is None and _exceeds_memory(path)):
        return open_blockwise(path, options)
    return TorchScorer(path, threads=options.shares()[0])


def open_blockwise(path: Path, options: ScoringOptions) -> Scorer:
    """The scorer of a folder's checkpoint that is read block by block; raises as `open_reference`."""
    from edgepack.export.checkpoint import open_checkpoint

    return blockwise_scorer(open_checkpoint(path), options)


def blockwise_scorer(checkpoint: Checkpoint, options: ScoringOptions) -> Scorer:
    """The scorer of a checkpoint, whatever was merged into it, that is read block by block."""
    import torch

    from edgepack.edge.fidelity.scorers.blockwise import BlockwiseScorer
    from edgepack.edge.fidelity.scorers.torch import CheckpointTokenizer
    from edgepack.quant.calibration.blocks import BlockwiseModel

    torch.set_num_threads(options.shares()[0])
    label = f"{checkpoint.path.resolve().name} (transformers, float32, by blocks)"
    return BlockwiseScorer(BlockwiseModel(checkpoint), CheckpointTokenizer(checkpoint.path), label)


def _exceeds_memory(folder: Path) -> bool:
    """Whether the checkpoint in float32 (twice the bytes that 16-bit weights have on disk) would fill the memory."""
    weights = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2 * weights > _MEMORY_SHARE * memory


def open_stored(path: Path) -> StoredScorer:
    """The scorer of a stored reference; raises as `stored_reference.decode`."""
    from edgepack.edge.fidelity.scorers.stored import StoredScorer
    from edgepack.edge.fidelity.stored_reference import MAX_BYTES, decode

    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise UsageError(f"stored reference '{path}': expected a file of at most {MAX_BYTES} bytes")
    return StoredScorer(decode(path.read_bytes(), str(path)), f"{path.name} (stored)")


def open_candidate(
    path: Path, options: ScoringOptions, threads: int | None = None, progress: Progress = silent
) -> GGUFScorer:
    """The scorer of a GGUF or of an `.edgepack`, which is installed in this machine's cache first.

    Raises:
        UsageError: there is no such file.
        GGUFError, ArchiveError, IntegrityError: it is not sound.
    """
    from edgepack.edge.fidelity.scorers.gguf import GGUFScorer
    from edgepack.edge.install.model_file import prepare

    prepared = prepare(path, progress=progress)
    return GGUFScorer(
        prepared.path,
        options.longest,
        threads=options.shares()[1] if threads is None else threads,
        n_gpu_layers=options.n_gpu_layers,
        kv_type=options.kv_type,
        adapters=(*prepared.adapters, *options.adapters),
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


def run_validation(
    reference_path: Path,
    candidate_paths: Sequence[Path],
    text_path: Path | None,
    options: ScoringOptions,
    progress: Progress = silent,
    opener: Callable[[], Scorer] | None = None,
) -> FidelityRun:
    """Open everything, score, close everything.

    Args:
        reference_path: the original.
        candidate_paths: at least one file.
        text_path: what is scored; the reference's own samples where None.
        options: how.
        progress: told of scoring.
        opener: opens the reference where it is more than what lies at `reference_path`.

    Raises:
        EdgepackError: whatever opening or scoring finds wrong.
    """
    text = None if text_path is None else text_to_score(text_path)
    with ExitStack() as opened:
        candidates = []
        for path in candidate_paths:
            candidates.append(open_candidate(path, options, progress=progress))
            opened.callback(candidates[-1].close)
        reference = opener() if opener is not None else open_reference(reference_path, options)
        opened.callback(reference.close)
        text = text or sample_text(reference)
        chunking = choose_chunking(reference, text.text, options)
        found = validate(reference, candidates, text.text, chunking, progress)
        floor = measure_floor(reference, text.text, chunking, progress) if options.floor else ()
        tokens = reference.tokenizer.tokenize(text.text)
        greedy = greedy_agreement(reference, candidates, tokens, chunking, options.greedy)
    results = [
        Candidate(path, path.stat().st_size, scorer.path, validation, greedy=written)
        for path, scorer, validation, written in zip(candidate_paths, candidates, found, greedy, strict=True)
    ]
    return FidelityRun(tuple(results), chunking, text, reference.label, floor)


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


def with_findings(run: FidelityRun, reference_path: Path, progress: Progress = silent) -> FidelityRun:
    """The run with every candidate's contents held against the reference's, for those who look for a cause."""
    from edgepack.export.mapped_model import open_model
    from edgepack.pipeline.findings import find_differences

    original = open_model(reference_path, allow_requantize=True)
    candidates = [
        replace(candidate, findings=find_differences(original, candidate.model, progress))
        for candidate in run.candidates
    ]
    return replace(run, candidates=tuple(candidates))


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
