"""SentencePiece vocabularies from `tokenizer.model`, as llama.cpp's `llama` tokenizer wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.export.tokenizer.bpe import merge_added
from edgepack.export.tokenizer.sentencepiece_model import BPE, SentencePieceModel, read_sentencepiece
from edgepack.export.tokenizer.tokens import (
    ADDED_SCORE,
    PAD_SCORE,
    Token,
    TokenType,
    fill_table,
    table_metadata,
    vocabulary_size,
)

from edgepack.errors import TokenizerError
from edgepack.gguf.types import Value, boolean, string

if TYPE_CHECKING:
    from edgepack.export.tokenizer.files import TokenizerFiles

FILE_NAME = "tokenizer.model"


def read_sentencepiece_vocabulary(files: TokenizerFiles) -> dict[str, Value]:
    """The keys of a `llama` vocabulary from the folder's `tokenizer.model`.

    Raises:
        TokenizerError: a file that cannot be read, or a model that llama.cpp would encode with differently.
    """
    model = read_sentencepiece(files.folder / FILE_NAME)
    if model.model_type != BPE:
        raise TokenizerError(f"{FILE_NAME}: expected a BPE model, got unigram")
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
