"""SentencePiece vocabularies from the model file: BPE as llama.cpp's `llama`, unigram as its `t5`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.tokenizer.bpe import merge_added
from edgepack.export.tokenizer.sentencepiece_model import UNIGRAM, SentencePieceModel, read_sentencepiece
from edgepack.export.tokenizer.tokens import (
    ADDED_SCORE,
    PAD_SCORE,
    Token,
    TokenType,
    fill_table,
    table_metadata,
    vocabulary_size,
)
from edgepack.export.tokenizer.unigram import unigram_metadata
from edgepack.gguf.types import Value, boolean, string

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.tokenizer.files import TokenizerFiles

FILE_NAMES = ("tokenizer.model", "spiece.model")
"""Where models keep the file; T5 has the second."""


def read_sentencepiece_vocabulary(files: TokenizerFiles, path: Path) -> dict[str, Value]:
    """The keys of a vocabulary from a SentencePiece model file.

    Raises:
        TokenizerError: a file that cannot be read, or a model that llama.cpp would encode with differently.
    """
    model = read_sentencepiece(path)
    if model.model_type == UNIGRAM:
        return unigram_metadata(files, model)
    tokens = merge_added(dict(enumerate(map(_as_token, model.pieces))), files.added, ADDED_SCORE)
    table = fill_table(tokens, vocabulary_size(files.config, max(tokens)), PAD_SCORE)
    return {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        **table_metadata(table, scores=True),
        "tokenizer.ggml.add_space_prefix": boolean(_space_prefix(files, model)),
    }


def _as_token(piece: Token) -> Token:
    if piece.type is TokenType.USER_DEFINED:
        # searched for in the raw text, where a space is a space
        return Token(piece.text.replace("\u2581", " "), piece.type, piece.score)
    return piece


def _space_prefix(files: TokenizerFiles, model: SentencePieceModel) -> bool:
    declared = files.settings.get("add_prefix_space")
    return declared if isinstance(declared, bool) else model.add_dummy_prefix
