"""BPE merges: reading them, and merging a word as every implementation does. It knows no GGUF."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.files import member
from edgepack.export.tokenizer.tokens import MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Merges = list[tuple[str, str]]
"""Pairs in falling priority."""


def read_merges(model: Mapping[str, Any], vocab: Mapping[str, int]) -> Merges:
    """`model.merges` in either spelling: "left right", or [left, right].

    Raises:
        TokenizerError: a malformed merge, or one whose parts or result are no tokens.
    """
    entries = member(model, "merges", list, "tokenizer.json: model")
    if len(entries) > MAX_TOKENS:
        raise TokenizerError(f"tokenizer.json: expected at most {MAX_TOKENS} merges, got {len(entries)}")
    return [_read_merge(entry, index, vocab) for index, entry in enumerate(entries)]


def _read_merge(entry: Any, index: int, vocab: Mapping[str, int]) -> tuple[str, str]:
    parts = entry.split(" ") if isinstance(entry, str) else entry
    where = f"tokenizer.json: model.merges[{index}]"
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise TokenizerError(f"{where}: expected two parts, got {str(entry)[:80]!r}")
    left, right = parts
    for text in (left, right, left + right):
        if text not in vocab:
            raise TokenizerError(f"{where}: {text[:80]!r} is not in the vocabulary")
    if " " in left or " " in right:
        raise TokenizerError(f"{where}: llama.cpp's merges cannot hold a space, got {str(entry)[:80]!r}")
    return left, right


def merge_word(word: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The parts that remain when the pair of least rank is merged until none is left."""
    parts = list(word)
    while len(parts) > 1:
        pairs = pairwise(parts)
        rank, at = min((ranks.get(pair, MAX_TOKENS), i) for i, pair in enumerate(pairs))
        if rank == MAX_TOKENS:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def split_token(tokens: Iterable[str], merges: Merges) -> str | None:
    """A token that merging does not make of its own text, the shortest; None if there is none."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return next((text for text in sorted(tokens, key=len) if text and merge_word(text, ranks) != [text]), None)
