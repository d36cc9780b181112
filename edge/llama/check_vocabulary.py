"""Refuses a vocabulary that llama.cpp would abort on, loop over or read beyond the end of: `llama-vocab.cpp`'s rules.

Numbers of the architecture are `check`'s; what is not foreseen here ends a child process (`loads`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edgepack.errors import GGUFError
from edgepack.gguf import keys
from edgepack.gguf.reader import MAX_TEMPLATE_CHARACTERS
from edgepack.gguf.types import ValueType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.gguf.reader import GGUFHeader

_BYTE = 6  # LLAMA_TOKEN_TYPE_BYTE
_BYTE_TEXT = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Key → the type of its items: llama.cpp reads the arrays by this width, whatever the file says (#24888, #26690).
_ITEM_TYPES = {
    keys.VOCABULARY_SCORES: (ValueType.FLOAT32,),
    keys.VOCABULARY_TYPES: (ValueType.INT32, ValueType.UINT32),
    "tokenizer.ggml.merges": (ValueType.STRING,),
    "tokenizer.ggml.precompiled_charsmap": (ValueType.UINT8, ValueType.INT8),
    "tokenizer.ggml.suppress_tokens": (ValueType.INT32, ValueType.UINT32),
}
_PER_TOKEN = (keys.VOCABULARY_SCORES, keys.VOCABULARY_TYPES)
# Special tokens that a kind of vocabulary has where the file does not say: used as an index unseen (#25508).
_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
    "plamo2": {"bos": 1, "eos": 2, "unknown": 0, "padding": 3},
}
_WITHOUT_TOKENS = frozenset({None, "none", "no_vocab"})
_CHARSMAP_HEAD = 4  # bytes: the length of the trie that follows


def check_vocabulary(header: GGUFHeader) -> None:
    """Check tokens, what belongs to each, special tokens and the chat template.

    Raises:
        GGUFError: llama.cpp would not survive them.
    """
    template = header.get(keys.CHAT_TEMPLATE, "")
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE_CHARACTERS:
        raise _error(
            header, "tokenizer.chat_template", f"expected at most {MAX_TEMPLATE_CHARACTERS} characters of text"
        )
    tokens = header.get(keys.TOKENS)
    if tokens is None:
        return
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _error(header, keys.TOKENS, "expected a list of strings")
    _check_arrays(header, len(tokens))
    _check_special(header, len(tokens))
    if header.get("tokenizer.ggml.model") in _WITHOUT_TOKENS:
        return
    _check_unique(header, tokens)
    _check_bytes(header, tokens)
    _check_charsmap(header)


def _error(header: GGUFHeader, key: str, rule: str, got: Any = None) -> GGUFError:
    return GGUFError(f"{header.path}: {key}: {rule}" + ("" if got is None else f", got {got!r:.80}"))


def _check_arrays(header: GGUFHeader, count: int) -> None:
    for key, kinds in _ITEM_TYPES.items():
        value = header.metadata.get(key)
        if value is None:
            continue
        if value.type is not ValueType.ARRAY or value.item_type not in kinds:
            got = (value.type if value.item_type is None else value.item_type).name
            raise _error(header, key, f"expected an array of {' or '.join(kind.name for kind in kinds)}", got)
        if key in _PER_TOKEN and len(value.value) != count:
            raise _error(header, key, f"expected {count} values", len(value.value))


def _check_special(header: GGUFHeader, count: int) -> None:
    """Every special token is in the vocabulary, also one that the file does not name."""
    given: set[str] = set()
    for key, value in header.metadata.items():
        if match := re.fullmatch(r"tokenizer\.ggml\.(\w+)_token_id", key):
            given.add(match[1])
            number = value.value
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
                raise _error(header, key, f"expected 0 to {count - 1}", number)
    model = header.get("tokenizer.ggml.model")
    for name, number in _DEFAULTS.get(model if isinstance(model, str) else "", {}).items():
        if name not in given and number >= count:
            raise _error(header, f"tokenizer.ggml.{name}_token_id", f"absent, its default {number} is no token", count)
    if model == "t5" and header.get("tokenizer.ggml.add_bos_token") is True and "bos" not in given:
        raise _error(header, "tokenizer.ggml.add_bos_token", "expected tokenizer.ggml.bos_token_id with it")


def _check_unique(header: GGUFHeader, tokens: Sequence[str]) -> None:
    """No text occurs twice, as llama.cpp reads texts: to the first NUL, empty ones by their number (#24885)."""
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens):
        text = token.partition("\0")[0] if "\0" in token else token
        first = seen.setdefault(text or f"[EMPTY_{number}]", number)
        if first != number:
            raise _error(header, keys.TOKENS, f"tokens {first} and {number} are the same, llama.cpp aborts", token)


def _check_bytes(header: GGUFHeader, tokens: Sequence[str]) -> None:
    """Tokens of single bytes say which: llama.cpp takes two digits out of the text unseen (#25969)."""
    types = header.get(keys.VOCABULARY_TYPES)
    for number in [number for number, kind in enumerate(types or ()) if kind == _BYTE]:
        if not _BYTE_TEXT.fullmatch(tokens[number]):
            raise _error(header, keys.TOKENS, f"token {number}: expected <0x00> to <0xFF> for a byte", tokens[number])
    if header.get("tokenizer.ggml.model") in ("bert", "rwkv") and _BYTE in (types or ()):
        raise _error(header, keys.VOCABULARY_TYPES, "expected no tokens of single bytes in such a vocabulary")


def _check_charsmap(header: GGUFHeader) -> None:
    """The rules for rewriting text before it is cut begin with their trie's length."""
    content = header.get("tokenizer.ggml.precompiled_charsmap")
    if not content:
        return
    head = bytes(byte & 0xFF for byte in content[:_CHARSMAP_HEAD])
    length = int.from_bytes(head, "little")
    if len(head) < _CHARSMAP_HEAD or length % 4 or _CHARSMAP_HEAD + length > len(content):
        raise _error(header, "tokenizer.ggml.precompiled_charsmap", f"{len(content)} bytes do not hold its trie")
