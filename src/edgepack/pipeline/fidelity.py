"""Opens reference, candidates and text for a validation and runs it: what `edgepack validate` and its like share.

Measuring is left to `edge`, printing to `cli`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.greedy import greedy_agreement
from edgepack.edge.fidelity.run import Candidate, FidelityRun
from edgepack.edge.fidelity.scoring import (
    choose_chunking,
    measure_floor,
    open_candidate,
    open_stored,
    sample_text,
    text_to_score,
)
from edgepack.edge.fidelity.validate import validate
from edgepack.errors import DependencyError, UsageError
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.model import Checkpoint
    from edgepack.pipeline.located import LocatedModel
    from edgepack.progress import Progress

_MEMORY_SHARE = 0.7  # of the machine's memory, for weights; the rest is for logits and the candidate


def open_reference(path: Path, options: ScoringOptions) -> Scorer:
    """The scorer of a Hugging Face folder (torch, float32), of a GGUF (llama.cpp) or of a stored reference.

    Raises:
        DependencyError: torch or transformers is not installed.
        UsageError: there is no such file or folder.
    """
    if path.suffix == ".edgeref":
        return open_stored(path)
    if path.is_file():
        trust = None if options.trust is None else options.trust.of_originals()
        return open_candidate(path, replace(options, trust=trust, adapters=()), options.shares()[0])
    if not path.is_dir():
        raise UsageError(f"reference '{path}': no such file or folder")
    with _torch_installed():
        from edgepack.edge.fidelity.scorers.torch import TorchScorer
    if options.blockwise or (options.blockwise is None and _exceeds_memory(path)):
        return open_blockwise(path, options)
    return TorchScorer(path, threads=options.shares()[0])


def open_original(path: Path, located: LocatedModel | None, options: ScoringOptions) -> Scorer:
    """The scorer of an original: of one at a URL by blocks, of any other as `open_reference`, which raises."""
    return open_reference(path, options) if located is None else blockwise_scorer(located.checkpoint, options)


@contextmanager
def _torch_installed() -> Iterator[None]:
    """What is imported in the block is told of where it is absent."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the reference runs in torch: '{error.name}' is not installed, use pip install 'edgepack[compress]'"
        ) from None


def open_blockwise(path: Path, options: ScoringOptions) -> Scorer:
    """The scorer of a folder's checkpoint that is read block by block; raises as `open_reference`."""
    from edgepack.export.checkpoint import open_checkpoint

    return blockwise_scorer(open_checkpoint(path), options)


def blockwise_scorer(checkpoint: Checkpoint, options: ScoringOptions) -> Scorer:
    """The scorer of a checkpoint, whatever was merged into it, that is read block by block.

    Raises:
        DependencyError: torch or transformers is not installed.
    """
    with _torch_installed():
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


def with_findings(
    run: FidelityRun, reference_path: Path, progress: Progress = silent, merged: Checkpoint | None = None
) -> FidelityRun:
    """The run with every candidate's contents held against the reference's, for those who look for a cause.

    `merged` is the reference where it is more than what lies at `reference_path`: with its adapter.
    """
    from edgepack.edge.fidelity.findings import find_differences
    from edgepack.export.mapped_model import map_checkpoint, open_model

    original = open_model(reference_path, allow_requantize=True) if merged is None else map_checkpoint(merged)
    candidates = [
        replace(candidate, findings=find_differences(original, candidate.model, progress))
        for candidate in run.candidates
    ]
    return replace(run, candidates=tuple(candidates))
