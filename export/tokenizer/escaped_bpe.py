"""BPE over whole text with ▁ for spaces and byte fall-back, from tokenizer.json alone: Llama 2, Gemma, Phi-3.

llama.cpp has two tokenizers that may stand in: `llama` merges any two neighbours whose union is a token, best
score first; `gemma4` follows the list of merges, but puts no ▁ before the text. The reader picks the one that
provably gives the same ids, and refuses where neither does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.bpe import merge_added, read_vocab, refuse_options
from edgepack.export.tokenizer.files import TokenizerFiles, member
from edgepack.export.tokenizer.merging import Merges, read_merges
from edgepack.export.tokenizer.tokens import (
    ADDED_SCORE,
    PAD_SCORE,
    Token,
    TokenType,
    fill_table,
    table_metadata,
    vocabulary_size,
)
from edgepack.export.tokenizer.whitespace_signs import SIGN, WhitespaceRules, read_whitespace_rules
from edgepack.gguf.types import Value, ValueType, array, boolean, string

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
BYTE_VALUES = 256
"""Byte tokens that a vocabulary must have for llama.cpp to encode any text."""


def read_escaped_bpe(files: TokenizerFiles) -> dict[str, Value]:
    """The keys of a vocabulary whose `tokenizer.json` is BPE and not byte-level.

    Raises:
        TokenizerError: unknown steps, no byte fall-back, or merges that llama.cpp cannot follow.
    """
    model = member(files.tokenizer, "model", dict, "tokenizer.json")
    rules = read_whitespace_rules(files.tokenizer)
    vocab = read_vocab(model)
    _check_options(model, rules, vocab)
    merges = read_merges(model, vocab)
    found_first = {token.text for token in files.added.values()}
    scores, obstacle = scores_from_merges(vocab, merges, found_first)
    tokens = merge_added(_typed(model, vocab, scores), files.added, ADDED_SCORE)
    table = fill_table(tokens, vocabulary_size(files.config, max(tokens)), PAD_SCORE)
    if obstacle is None:
        return {
            "tokenizer.ggml.model": string("llama"),
            "tokenizer.ggml.pre": string("default"),
            **table_metadata(table, scores=True),
            "tokenizer.ggml.add_space_prefix": boolean(rules.prefix),
        }
    _check_merge_list(rules, merges, obstacle)
    return {
        "tokenizer.ggml.model": string("gemma4"),
        "tokenizer.ggml.pre": string("gemma4"),
        **table_metadata(table, scores=False),
        "tokenizer.ggml.merges": array(ValueType.STRING, [f"{left} {right}" for left, right in merges]),
    }


def scores_from_merges(
    vocab: Mapping[str, int], merges: Merges, found_first: AbstractSet[str] = frozenset()
) -> tuple[dict[str, float], str | None]:
    """Scores under which merging by score is merging by rank.

    Args:
        vocab: token → id.
        merges: pairs in falling priority.
        found_first: tokens that are cut out of the text before anything is merged: how they would be made of
            parts does not matter (Gemma lists every run of spaces and newlines).

    Returns:
        token → score for every token that a merge makes, and None; or a sentence that says why merging by score
        would differ.
    """
    first: dict[str, int] = {}
    previous = ""
    for rank, (left, right) in enumerate(merges):
        union = left + right
        if union in found_first:
            continue
        if union != previous and union in first:
            return {}, f"the merges that make {union!r} are not together"
        first.setdefault(union, rank)
        previous = union
    missing = _missing_merge(vocab, set(merges), found_first)
    if missing is not None:
        return {}, f"{missing[0]!r} and {missing[1]!r} make a token, but no merge says so"
    return {union: -float(rank) for union, rank in first.items()}, None


def count_bytes(texts: Iterable[str]) -> int:
    """How many of the texts are byte tokens."""
    return sum(_BYTE.fullmatch(text) is not None for text in texts)


def _missing_merge(
    vocab: Mapping[str, int], merges: AbstractSet[tuple[str, str]], found_first: AbstractSet[str]
) -> tuple[str, str] | None:
    """Two tokens whose union is a token that no merge makes of them."""
    for text in vocab.keys() - found_first:
        for at in range(1, len(text)):
            pair = (text[:at], text[at:])
            if pair not in merges and pair[0] in vocab and pair[1] in vocab:
                return pair
    return None


def _check_options(model: Mapping[str, Any], rules: WhitespaceRules, vocab: Mapping[str, int]) -> None:
    refuse_options(model)
    if model.get("byte_fallback") is not True or count_bytes(vocab) != BYTE_VALUES:
        raise TokenizerError("tokenizer.json: llama.cpp's BPE needs all 256 byte tokens, <0x00> to <0xFF>")
    if rules.collapses or rules.drops_spaces or rules.charsmap or model.get("ignore_merges"):
        raise TokenizerError("tokenizer.json: llama.cpp's BPE neither normalises text nor takes whole words first")
    across = next((text for text in vocab if rules.splits_words and SIGN in text[1:]), None)
    if across is not None:
        raise TokenizerError(f"tokenizer.json: words are split at {SIGN}, but token {across!r} reaches across")


def _check_merge_list(rules: WhitespaceRules, merges: Merges, obstacle: str) -> None:
    """`gemma4` cuts text at newlines and adds no prefix: refuse what depends on either."""
    if rules.prefix:
        raise TokenizerError(f"tokenizer.json: llama.cpp cannot follow these merges: {obstacle}")
    for left, right in merges:
        if "\n" in left + right and (left + right).strip("\n"):
            raise TokenizerError(f"tokenizer.json: llama.cpp merges no newline with other text, got {left + right!r}")


def _typed(model: Mapping[str, Any], vocab: Mapping[str, int], scores: Mapping[str, float]) -> dict[int, Token]:
    unknown = model.get("unk_token")

    def kind(text: str) -> TokenType:
        if _BYTE.fullmatch(text):
            return TokenType.BYTE
        return TokenType.UNKNOWN if text == unknown else TokenType.NORMAL

    return {i: Token(text, kind(text), scores.get(text, ADDED_SCORE)) for text, i in vocab.items()}
