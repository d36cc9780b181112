"""SentencePiece vocabularies from the model file: BPE as llama.cpp's `llama`, unigram as its `t5`.

What the trainer's options say counts as far as transformers takes notice of it: a class such as `LlamaTokenizer` has
its own rules for spaces, `TokenizersBackend` puts no space before the text. Where nothing names a class, the file
decides. What llama.cpp cannot do is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.bpe import merge_added
from edgepack.export.tokenizer.classes import BACKEND, CLASSES
from edgepack.export.tokenizer.escaped_bpe import BYTE_VALUES, count_bytes
from edgepack.export.tokenizer.files import kind_of
from edgepack.export.tokenizer.pretokenizer import flatten
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

_OWN_SPACES = {"LlamaTokenizer": True, "CodeLlamaTokenizer": True, "GemmaTokenizer": False}
"""Classes that build the steps themselves, and whether they put a space before the text."""

Keys = dict[str, Value]
Reader = Callable[["TokenizerFiles"], Keys]


@dataclass(frozen=True)
class _Spaces:
    """What happens to white space and characters before pieces are looked for."""

    prefix: bool
    collapses: bool
    normalizes: bool
    falls_back: bool


def read_sentencepiece_vocabulary(files: TokenizerFiles, path: Path) -> tuple[Keys, tuple[str, ...]]:
    """The keys of a vocabulary from a SentencePiece model file, and a line where transformers reads it otherwise.

    Raises:
        TokenizerError: a file that cannot be read, or a model that llama.cpp would encode with differently.
    """
    model = read_sentencepiece(path)
    if model.model_type == UNIGRAM:
        _refuse_other_kind(files, path)
        return unigram_metadata(files, model), ()
    spaces, notes = _spaces(files, model, path)
    _check_options(model, spaces, path)
    tokens = merge_added(dict(enumerate(map(_as_token, model.pieces))), files.added, ADDED_SCORE)
    table = fill_table(tokens, vocabulary_size(files.config, max(tokens)), PAD_SCORE)
    return {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        **table_metadata(table, scores=True),
        "tokenizer.ggml.add_space_prefix": boolean(spaces.prefix),
    }, notes


def with_own_names(files: TokenizerFiles, path: Path) -> TokenizerFiles:
    """With the special tokens that a model file names, where transformers reads the file itself for them."""
    if files.class_name != BACKEND:
        return files
    own = {f"{role}_token": piece for role, piece in read_sentencepiece(path).names.items()}
    return replace(files, settings={**own, **files.settings})


def read_json_beside_model(files: TokenizerFiles, path: Path, reader: Reader | None) -> tuple[Keys, tuple[str, ...]]:
    """The keys of a tokenizer.json that has a SentencePiece model beside it: the first decides, as in transformers.

    The model is read in its place only where llama.cpp cannot follow the first and both have the same pieces.

    Raises:
        TokenizerError: llama.cpp cannot follow the tokenizer.
    """
    if reader is None:
        raise TokenizerError("tokenizer.json: expected a model of type BPE, Unigram or WordPiece")
    try:
        keys = reader(files)
    except TokenizerError:
        if not _same_pieces(files, path):
            raise
        keys, notes = read_sentencepiece_vocabulary(files, path)
        return keys, (*notes, f"tokenizer: the pieces of {path.name} are taken, which are tokenizer.json's too")
    if _same_pieces(files, path):
        return keys, whitespace_notes(files)
    note = f"tokenizer: tokenizer.json is read, as transformers does; {path.name} beside it has other pieces"
    return keys, (note, *whitespace_notes(files))


def whitespace_notes(files: TokenizerFiles) -> tuple[str, ...]:
    """A line where llama.cpp puts a space before text that the original leaves as it is (Metaspace's schemes)."""
    step = files.tokenizer.get("pre_tokenizer")
    kinds = {kind_of(each) for each in flatten(step, "pretokenizers")}
    compiled = any(kind_of(each) == "Precompiled" for each in flatten(files.tokenizer.get("normalizer"), "normalizers"))
    if "WhitespaceSplit" in kinds and not compiled:
        return ("tokenizer: the original cuts words at any white space, llama.cpp only at spaces",)
    scheme = step.get("prepend_scheme", "always") if isinstance(step, dict) and kind_of(step) == "Metaspace" else None
    if scheme not in ("first", "always"):
        return ()
    return (_prefix_note(behind_special=scheme == "first"),)


def _prefix_note(*, behind_special: bool) -> str:
    where = "begins with one or stands behind a special token" if behind_special else "begins with one"
    return f"tokenizer: llama.cpp puts a space before text that {where}, the original does not"


def _same_pieces(files: TokenizerFiles, path: Path) -> bool:
    """Whether a model file has the pieces that tokenizer.json has, under the same ids."""
    try:
        pieces = [piece.text for piece in read_sentencepiece(path).pieces]
    except TokenizerError:
        return False
    model = files.tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):
        own = [entry[0] for entry in vocab if isinstance(entry, list) and entry]
        return own[: len(pieces)] == pieces
    if not isinstance(vocab, dict):
        return False
    added = {token.text: i for i, token in files.added.items()}
    return all(vocab.get(text, added.get(text)) == i for i, text in enumerate(pieces)) and len(vocab) <= len(pieces)


def _refuse_other_kind(files: TokenizerFiles, path: Path) -> None:
    chosen = CLASSES.get(files.class_name or "")
    if chosen is not None and chosen.model != "Unigram":
        raise TokenizerError(
            f"{path.name}: a unigram model, but tokenizer_class {files.class_name} makes {chosen.model} of it"
        )


def _spaces(files: TokenizerFiles, model: SentencePieceModel, path: Path) -> tuple[_Spaces, tuple[str, ...]]:
    """The class's rules, where one is named, else the file's; a line where they differ."""
    name, declared = files.class_name, files.settings.get("add_prefix_space")
    if name is None:
        prefix = declared if isinstance(declared, bool) else model.add_dummy_prefix
        return _Spaces(prefix, model.remove_extra_whitespaces, bool(model.charsmap), model.byte_fallback), ()
    if name in _OWN_SPACES:
        prefix = declared if isinstance(declared, bool) and _OWN_SPACES[name] else _OWN_SPACES[name]
        chosen = _Spaces(prefix, collapses=False, normalizes=False, falls_back=True)
    else:
        chosen = _Spaces(prefix=False, collapses=False, normalizes=bool(model.charsmap), falls_back=model.byte_fallback)
    differences = [
        what
        for what, ours, theirs in (
            ("puts a space before the text", chosen.prefix, model.add_dummy_prefix),
            ("collapses runs of spaces", chosen.collapses, model.remove_extra_whitespaces),
            ("normalises text", chosen.normalizes, bool(model.charsmap)),
        )
        if ours != theirs
    ]
    notes = (
        f"tokenizer: {path.name} and transformers' {name} differ in whether it {what}: {name} decides"
        for what in differences
    )
    own = (_prefix_note(behind_special=files.settings.get("legacy") is not True),) if chosen.prefix else ()
    return chosen, (*notes, *own)


def _check_options(model: SentencePieceModel, spaces: _Spaces, path: Path) -> None:
    """Refuse what llama.cpp's SentencePiece tokenizer does not do, and say what would differ."""
    if not spaces.falls_back or count_bytes(piece.text for piece in model.pieces) != BYTE_VALUES:
        raise TokenizerError(
            f"{path.name}: llama.cpp's BPE needs all {BYTE_VALUES} byte tokens, <0x00> to <0xFF>: without byte_fallback"
            " it ends at the first unknown character"
        )
    if spaces.normalizes:
        raise TokenizerError(f"{path.name}: llama.cpp's BPE does not normalise text, this model's normalizer_spec does")
    if spaces.collapses:
        raise TokenizerError(
            f"{path.name}: llama.cpp's BPE keeps runs of spaces, this model drops them (remove_extra_whitespaces)"
        )
    if model.suffix_whitespace:
        raise TokenizerError(f"{path.name}: llama.cpp reads no model with white space as a suffix")
    if not model.escape_whitespaces:
        raise TokenizerError(f"{path.name}: llama.cpp escapes spaces, this model does not (escape_whitespaces)")


def _as_token(piece: Token) -> Token:
    if piece.type is TokenType.USER_DEFINED:
        # searched for in the raw text, where a space is a space
        return Token(piece.text.replace("\u2581", " "), piece.type, piece.score)
    return piece
