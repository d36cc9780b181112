"""The table of tokens that a GGUF vocabulary is made of: text, score and type of every id.

Where tokens come from is left to the readers of each tokenizer file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.gguf.types import Value, ValueType, array

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_TOKENS = 1 << 24
"""More ids than any published vocabulary has (the largest is about 2^18); a hostile config cannot ask for more."""

MAX_TOKEN_BYTES = 1 << 16
"""Longest token text in bytes."""

ADDED_SCORE = -1000.0
"""Score that llama.cpp's converter gives to tokens added outside the trained vocabulary."""

PAD_SCORE = -10000.0
"""Score that llama.cpp's converter gives to ids without a token."""


class TokenType(IntEnum):
    """Token types, numbered as `enum llama_token_type` in llama.h (and as SentencePiece numbers its pieces)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Token:
    """One entry: what llama.cpp looks up, its score (0 where scores mean nothing) and its type."""

    text: str
    type: TokenType
    score: float = 0.0


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before it is split into words.

    Attributes:
        id: its id.
        text: as it stands in the text.
        special: whether it steers the model rather than stand for text.
        normalized: whether it is searched for in the normalised text.
    """

    id: int
    text: str
    special: bool
    normalized: bool = False

    def as_token(self, score: float = 0.0) -> Token:
        """The entry in the table, typed as llama.cpp's converter does."""
        if self.special or looks_special(self.text):
            return Token(self.text, TokenType.CONTROL, score)
        # llama.cpp searches user-defined tokens in the raw text, where a space is a space
        return Token(self.text.replace("\u2581", " "), TokenType.USER_DEFINED, score)


def looks_special(text: str) -> bool:
    """Whether a token is a control token by its looks.

    Several families forget to flag theirs; the rule is the one of llama.cpp's converter.
    """
    return (
        text in {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def check_id(value: Any, what: str) -> int:
    """`value` as a token id.

    Raises:
        TokenizerError: not a whole number from 0 (included) to `MAX_TOKENS` (not included).
    """
    if type(value) is not int or not 0 <= value < MAX_TOKENS:
        raise TokenizerError(f"{what}: expected a token id from 0 to {MAX_TOKENS - 1}, got {value!r}")
    return value


def check_text(value: Any, what: str) -> str:
    """`value` as a token's text.

    Raises:
        TokenizerError: not a string, too long, or not encodable as UTF-8.
    """
    if not isinstance(value, str):
        raise TokenizerError(f"{what}: expected a string, got {type(value).__name__}")
    try:
        length = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise TokenizerError(f"{what}: expected text that UTF-8 can hold, got {value!r}") from None
    if length > MAX_TOKEN_BYTES:
        raise TokenizerError(f"{what}: expected at most {MAX_TOKEN_BYTES} bytes, got {length}")
    return value


def vocabulary_size(config: Mapping[str, Any], highest_id: int) -> int:
    """Ids that the model's embedding has: `vocab_size` of the configuration, else just enough.

    Raises:
        TokenizerError: the tokenizer has ids beyond the embedding.
    """
    size = config.get("vocab_size", highest_id + 1)
    if type(size) is not int or not 0 < size <= MAX_TOKENS:
        raise TokenizerError(f"config.json: expected vocab_size from 1 to {MAX_TOKENS}, got {size!r}")
    if highest_id >= size:
        raise TokenizerError(f"tokenizer: expected ids below vocab_size {size}, got {highest_id}")
    return size


def fill_table(tokens: Mapping[int, Token], size: int, pad_score: float = 0.0) -> list[Token]:
    """Every id from 0 to `size` (not included); ids without a token become `[PADn]`, unused.

    Raises:
        TokenizerError: two ids have the same text, with which llama.cpp cannot load a vocabulary.
    """
    table = [tokens.get(i) or Token(f"[PAD{i}]", TokenType.UNUSED, pad_score) for i in range(size)]
    seen: dict[str, int] = {}
    for i, token in enumerate(table):
        # llama.cpp reads texts up to the first NUL, and names an empty one after its id
        text = token.text.partition("\0")[0] or f"[EMPTY_{i}]"
        if text in seen:
            raise TokenizerError(f"tokenizer: expected distinct tokens, got {text!r} at ids {seen[text]} and {i}")
        seen[text] = i
    return table


def table_metadata(table: Iterable[Token], *, scores: bool) -> dict[str, Value]:
    """The keys that hold the table; `scores` are left out for BPE, where merges decide."""
    entries = list(table)
    metadata = {"tokenizer.ggml.tokens": array(ValueType.STRING, [t.text for t in entries])}
    if scores:
        metadata["tokenizer.ggml.scores"] = array(ValueType.FLOAT32, [t.score for t in entries])
    metadata["tokenizer.ggml.token_type"] = array(ValueType.INT32, [int(t.type) for t in entries])
    return metadata
