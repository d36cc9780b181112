"""The text that caches are judged on: the same chunks and positions for every bench, so that their tables compare.

Chunks are those of `kv` and `bench_kv`; half of each is read before anything is scored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.export.checkpoint import open_checkpoint
from edgepack.pipeline.kv.spectra import chunks_of
from edgepack.quant.attention.judging import judge
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.quant.attention.judging import Answer, Judgement


@dataclass(frozen=True)
class JudgedText:
    """Chunks of a text in one model's tokens.

    Attributes:
        tokens: [chunks, ctx].
        scored: the positions whose predictions are compared.
    """

    tokens: torch.Tensor
    scored: slice

    def judge(self, original: Answer, other: Answer) -> Judgement:
        """How far one model's answers are from another's."""
        return judge(original, other, self.tokens, self.scored)


def judged_text(folder: Path, text: Path, ctx: int, chunks: int) -> JudgedText:
    """The first chunks of a text, cut by a checkpoint's own tokenizer."""
    found = chunks_of(open_checkpoint(folder), read_text(text), Chunking(ctx, max_chunks=chunks))
    tokens = torch.from_numpy(np.stack([chunk.tokens for chunk in found]).astype(np.int64))
    return JudgedText(tokens, slice(found[0].first, ctx - 1))


def kept_answers(answer: Answer, folder: Path) -> Answer:
    """The same answers, each computed once and kept in a folder: benches compare many models with one."""

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        path = folder / f"{hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16]}.npy"
        if not path.exists():
            np.save(path, answer(tokens).numpy())
        return torch.from_numpy(np.load(path))

    return logits
