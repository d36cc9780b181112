"""Reads SentencePiece's `tokenizer.model`: pieces, model type and normaliser; no GGUF here.

Field numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.protobuf import Field, as_bytes, as_float, as_int, as_text, read_fields
from edgepack.export.tokenizer.tokens import MAX_TOKENS, Token, TokenType, check_text
from edgepack.file_kinds import describe, is_pointer
from edgepack.files.source import read_small

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_FILE_BYTES = 1 << 28
"""Largest `tokenizer.model` that is read; published ones have about 5 MB."""

UNIGRAM, BPE = 1, 2
# role → (field of the id, its default); the piece's field is five further
_ROLES = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
_PIECES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
_MODEL_TYPES = {UNIGRAM: "unigram", BPE: "BPE", 3: "word", 4: "char"}


@dataclass(frozen=True)
class SentencePieceModel:
    """What `tokenizer.model` says, with the defaults of the proto file.

    Attributes:
        pieces: id → piece.
        model_type: `UNIGRAM` or `BPE`.
        byte_fallback: unknown characters become byte pieces.
        suffix_whitespace: the whitespace sign ends a word instead of beginning it.
        charsmap: SentencePiece's compiled normalisation rules, empty for identity.
        add_dummy_prefix: a space is put before the text.
        remove_extra_whitespaces: runs of spaces collapse.
        escape_whitespaces: a space is looked for as the whitespace sign.
        names: role → piece of the special tokens that the trainer knows.
    """

    pieces: tuple[Token, ...] = ()
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    suffix_whitespace: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    names: Mapping[str, str] = field(default_factory=dict)


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Parse `tokenizer.model`.

    Raises:
        TokenizerError: too large, truncated, without pieces, or of a type that is neither BPE nor unigram.
    """
    content = read_small(path, TokenizerError, MAX_FILE_BYTES)
    if is_pointer(content):
        raise TokenizerError(f"{path.name}: expected a SentencePiece model, got {describe(content)}")
    try:
        return parse_sentencepiece(content)
    except TokenizerError as error:
        raise TokenizerError(f"{path.name}: {error}") from None


def parse_sentencepiece(buffer: bytes) -> SentencePieceModel:
    """Parse a serialised `ModelProto`; errors as `read_sentencepiece`."""
    pieces: list[Token] = []
    model = SentencePieceModel()
    for number, value in read_fields(buffer):
        if number == 1:
            if len(pieces) == MAX_TOKENS:
                raise TokenizerError(f"expected at most {MAX_TOKENS} pieces, got more")
            pieces.append(_parse_piece(as_bytes(value, "piece"), len(pieces)))
        elif number == 2:
            model = _with_trainer(model, as_bytes(value, "trainer_spec"))
        elif number == 3:
            model = _with_normalizer(model, as_bytes(value, "normalizer_spec"))
    if not pieces:
        raise TokenizerError("expected a SentencePiece model, got one without pieces")
    if model.model_type not in {UNIGRAM, BPE}:
        kind = _MODEL_TYPES.get(model.model_type, model.model_type)
        raise TokenizerError(f"expected a BPE or unigram SentencePiece model, got type {kind}")
    return replace(model, pieces=tuple(pieces))


def _parse_piece(buffer: bytes, index: int) -> Token:
    text, score, kind = "", 0.0, int(TokenType.NORMAL)
    what = f"piece {index}"
    for number, value in read_fields(buffer):
        if number == 1:
            text = check_text(as_text(value, what), what)
        elif number == 2:
            score = as_float(value, what)
        elif number == 3:
            kind = as_int(value, what)
    if not isfinite(score):
        raise TokenizerError(f"{what}: expected a finite score, got {score}")
    if kind not in TokenType.__members__.values():
        raise TokenizerError(f"{what}: expected a piece type from 1 to 6, got {kind}")
    return Token(text, TokenType(kind), score)


def _with_trainer(model: SentencePieceModel, buffer: bytes) -> SentencePieceModel:
    fields = dict(read_fields(buffer))
    return replace(
        model,
        model_type=as_int(fields.get(3, UNIGRAM), "trainer_spec.model_type"),
        suffix_whitespace=_flag(fields, 24, default=False),
        byte_fallback=_flag(fields, 35, default=False),
        names=_special_pieces(fields),
    )


def _special_pieces(fields: Mapping[int, Field]) -> dict[str, str]:
    """Role → piece, of those whose id is not negative (`trainer_spec.*_id`, `*_piece`)."""
    found = {}
    for role, (number, default) in _ROLES.items():
        if as_int(fields.get(number, default), f"trainer_spec.{role}_id") >= 0:
            piece = fields.get(number + 5)
            found[role] = _PIECES[role] if piece is None else as_text(piece, f"trainer_spec.{role}_piece")
    return found


def _with_normalizer(model: SentencePieceModel, buffer: bytes) -> SentencePieceModel:
    fields = dict(read_fields(buffer))
    return replace(
        model,
        charsmap=as_bytes(fields.get(2, b""), "normalizer_spec.precompiled_charsmap"),
        add_dummy_prefix=_flag(fields, 3, default=True),
        remove_extra_whitespaces=_flag(fields, 4, default=True),
        escape_whitespaces=_flag(fields, 5, default=True),
    )


def _flag(fields: dict[int, Field], number: int, *, default: bool) -> bool:
    return bool(as_int(fields.get(number, int(default)), f"field {number}"))
