"""Tokenizers that write a space as ▁: what their normaliser and pre-tokenizer do, read from tokenizer.json.

Shared by BPE with byte fall-back (Llama 2, Mistral, Gemma, Phi-3) and unigram (T5, XLM-R).
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.files import kind_of
from edgepack.export.tokenizer.pretokenizer import brief, flatten

SIGN = "\u2581"


@dataclass(frozen=True)
class WhitespaceRules:
    """What happens to white space before pieces are looked for.

    Attributes:
        escapes: spaces become ▁.
        prefix: a ▁ is put before the text.
        splits_words: no piece may reach from one word into the next.
        collapses: runs of spaces become one.
        drops_spaces: words are cut at any white space, which is lost.
        charsmap: SentencePiece's compiled normalisation rules.
    """

    escapes: bool = False
    prefix: bool = False
    splits_words: bool = False
    collapses: bool = False
    drops_spaces: bool = False
    charsmap: bytes = b""


def read_whitespace_rules(tokenizer: Mapping[str, Any]) -> WhitespaceRules:
    """The rules of a `tokenizer.json`.

    Raises:
        TokenizerError: a step that llama.cpp has no counterpart for.
    """
    rules = WhitespaceRules()
    for entry in flatten(tokenizer.get("normalizer"), "normalizers"):
        rules = _with_normalizer(rules, entry)
    for entry in flatten(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        rules = _with_pretokenizer(rules, entry)
    if not rules.escapes:
        raise TokenizerError(f"tokenizer.json: expected spaces to become {SIGN}, got a tokenizer that leaves them")
    return rules


def _with_normalizer(rules: WhitespaceRules, entry: Mapping[str, Any]) -> WhitespaceRules:
    kind = kind_of(entry)
    if kind == "Prepend" and entry.get("prepend") == SIGN:
        return replace(rules, prefix=True)
    if kind == "Replace":
        change = (_pattern(entry), entry.get("content"))
        if change == ("String:' '", SIGN):
            return replace(rules, escapes=True)
        if change in (("Regex:' {2,}'", " "), ("Regex:' {2,}'", SIGN)):
            return replace(rules, collapses=True)
    if kind == "Precompiled":
        return replace(rules, charsmap=_decode(entry.get("precompiled_charsmap")))
    raise _unknown("normalizer", entry)


def _with_pretokenizer(rules: WhitespaceRules, entry: Mapping[str, Any]) -> WhitespaceRules:
    kind = kind_of(entry)
    if kind == "Metaspace" and entry.get("replacement") == SIGN:
        scheme = entry.get("prepend_scheme", "always" if entry.get("add_prefix_space", True) else "never")
        split = entry.get("split") is not False
        return replace(rules, escapes=True, prefix=rules.prefix or scheme != "never", splits_words=split)
    if kind == "Split" and _pattern(entry) == "String:' '" and rules.escapes:
        return rules  # Gemma's: no space is left that it could split at
    if kind == "WhitespaceSplit":
        return replace(rules, drops_spaces=True)
    raise _unknown("pre_tokenizer", entry)


def _pattern(entry: Mapping[str, Any]) -> str:
    """Kind and text of a pattern, as one comparable string."""
    pattern = entry.get("pattern")
    kinds = [(kind, text) for kind, text in pattern.items()] if isinstance(pattern, Mapping) else []
    return f"{kinds[0][0]}:{kinds[0][1]!r}" if len(kinds) == 1 else ""


def _decode(text: Any) -> bytes:
    if text is None:
        return b""
    try:
        return b64decode(text, validate=True)
    except (Base64Error, TypeError, ValueError) as error:
        raise TokenizerError(f"tokenizer.json: precompiled_charsmap: expected base64, got {error}") from None


def _unknown(where: str, entry: Mapping[str, Any]) -> TokenizerError:
    return TokenizerError(f"tokenizer.json: the {where} is not one that llama.cpp has: {brief(entry)}")
