"""One answer with its clock: a prompt in, text and timings out. Chat templates are left to `chat`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.edge.runtime import LoadedModel
    from edgepack.edge.runtime_options import SamplingOptions

    from edgepack.gguf.reader import GGUFHeader

_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class Completion:
    """What came of a prompt.

    Attributes:
        text: the answer without the prompt.
        tokens: generated tokens.
        prompt_tokens: tokens of the prompt, BOS included.
        first_token_seconds: from the call to the first token, prompt evaluation included.
        tokens_per_second: of generation after the first token; 0.0 where fewer than two came.
    """

    text: str
    tokens: int
    prompt_tokens: int
    first_token_seconds: float
    tokens_per_second: float


def default_context(header: GGUFHeader) -> int:
    """The model's own context, but not more than a machine of which nothing is known should be asked for."""
    architecture = header.get("general.architecture")
    return min(int(header.get(f"{architecture}.context_length")), _DEFAULT_CONTEXT)


def complete(
    model: LoadedModel,
    prompt: str | Sequence[int],
    sampling: SamplingOptions,
    max_tokens: int,
    show: Callable[[str], object],
) -> Completion:
    """Continue `prompt`.

    Args:
        model: an open model.
        prompt: text (BOS is put in front where the vocabulary asks for it), or token ids as they stand.
        sampling: how tokens are chosen.
        max_tokens: not more than these; -1 is as many as the context holds.
        show: called with each piece of text as it comes.

    Raises:
        UsageError: the prompt is longer than the context.
    """
    started = time.perf_counter()
    ids = model.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
    pieces: list[str] = []
    first = last = started
    for token in model.generate(ids, sampling, max_tokens):
        last = time.perf_counter()
        first = first if pieces else last
        pieces.append(token.text)
        show(token.text)
    speed = (len(pieces) - 1) / (last - first) if last > first else 0.0
    return Completion("".join(pieces), len(pieces), len(ids), first - started, speed)
