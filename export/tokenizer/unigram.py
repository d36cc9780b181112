"""Unigram vocabularies, from SentencePiece's model file or tokenizer.json, for llama.cpp's `t5` tokenizer."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.bpe import merge_added
from edgepack.export.tokenizer.files import TokenizerFiles, member
from edgepack.export.tokenizer.sentencepiece_model import UNIGRAM, SentencePieceModel
from edgepack.export.tokenizer.tokens import (
    PAD_SCORE,
    Token,
    TokenType,
    check_text,
    fill_table,
    table_metadata,
    vocabulary_size,
)
from edgepack.export.tokenizer.whitespace_signs import WhitespaceRules, read_whitespace_rules
from edgepack.gguf.types import Value, ValueType, array, boolean, string, u32

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHARSMAP_HEADER = 4


def read_unigram_json(files: TokenizerFiles) -> dict[str, Value]:
    """The keys of a vocabulary whose `tokenizer.json` is Unigram; errors as `unigram_metadata`."""
    model = member(files.tokenizer, "model", dict, "tokenizer.json")
    rules = read_whitespace_rules(files.tokenizer)
    pieces = _read_pieces(model)
    return unigram_metadata(
        files,
        SentencePieceModel(
            pieces=tuple(pieces),
            model_type=UNIGRAM,
            byte_fallback=model.get("byte_fallback") is True,
            charsmap=rules.charsmap,
            add_dummy_prefix=rules.prefix,
            remove_extra_whitespaces=_drops_runs(rules, pieces),
        ),
    )


def unigram_metadata(files: TokenizerFiles, model: SentencePieceModel) -> dict[str, Value]:
    """The keys of a `t5` vocabulary.

    Raises:
        TokenizerError: byte fall-back or white space as a suffix, which llama.cpp's unigram does not have; no
            unknown piece; normalisation rules that are cut off.
    """
    if model.byte_fallback:
        raise TokenizerError("tokenizer: llama.cpp's unigram tokenizer has no byte fall-back, which this model needs")
    if model.suffix_whitespace:
        raise TokenizerError("tokenizer: llama.cpp reads no unigram model with white space as a suffix")
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.type is TokenType.UNKNOWN), None)
    if unknown is None:
        raise TokenizerError("tokenizer: expected an unknown piece, got none")
    tokens = merge_added(dict(enumerate(model.pieces)), _but(files, unknown))
    table = fill_table(tokens, vocabulary_size(files.config, max(tokens)), PAD_SCORE)
    return {
        "tokenizer.ggml.model": string("t5"),
        "tokenizer.ggml.pre": string("default"),
        **table_metadata(table, scores=True),
        "tokenizer.ggml.unknown_token_id": u32(unknown),
        "tokenizer.ggml.add_space_prefix": boolean(model.add_dummy_prefix),
        "tokenizer.ggml.remove_extra_whitespaces": boolean(model.remove_extra_whitespaces),
        **_charsmap(model.charsmap),
    }


def _but(files: TokenizerFiles, unknown: int) -> dict[int, Any]:
    """The added tokens without the unknown one, which keeps its type."""
    return {i: token for i, token in files.added.items() if i != unknown}


def _charsmap(charsmap: bytes) -> dict[str, Value]:
    """Checked as llama.cpp does: a length, that many bytes of trie, then at least one replacement."""
    if not charsmap:
        return {}
    trie = int.from_bytes(charsmap[:_CHARSMAP_HEADER], "little")
    if len(charsmap) < _CHARSMAP_HEADER or trie + _CHARSMAP_HEADER >= len(charsmap) or charsmap[-1] != 0:
        raise TokenizerError(f"precompiled_charsmap: expected {trie} bytes of trie and then texts, got {len(charsmap)}")
    return {"tokenizer.ggml.precompiled_charsmap": array(ValueType.UINT8, list(charsmap))}


def _read_pieces(model: Mapping[str, Any]) -> list[Token]:
    unknown = model.get("unk_id")
    entries = member(model, "vocab", list, "tokenizer.json: model")
    return [_read_piece(entry, index, is_unknown=index == unknown) for index, entry in enumerate(entries)]


def _read_piece(entry: Any, index: int, *, is_unknown: bool) -> Token:
    where = f"tokenizer.json: model.vocab[{index}]"
    if not isinstance(entry, list) or len(entry) != 2 or type(entry[1]) not in {int, float}:
        raise TokenizerError(f"{where}: expected a piece and its score, got {str(entry)[:80]!r}")
    if not isfinite(entry[1]):
        raise TokenizerError(f"{where}: expected a finite score, got {entry[1]}")
    kind = TokenType.UNKNOWN if is_unknown else TokenType.NORMAL
    return Token(check_text(entry[0], where), kind, float(entry[1]))


def _drops_runs(rules: WhitespaceRules, pieces: list[Token]) -> bool:
    """Whether runs of spaces collapse.

    Raises:
        TokenizerError: pieces reach across words that this tokenizer splits, which llama.cpp would use.
    """
    across = next((p.text for p in pieces if rules.splits_words and "\u2581" in p.text[1:]), None)
    if across is not None and not (rules.collapses or rules.drops_spaces):
        raise TokenizerError(f"tokenizer.json: words are split, but piece {across!r} reaches across")
    return rules.collapses or rules.drops_spaces
