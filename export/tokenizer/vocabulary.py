"""The one entry of this folder: a checkpoint's tokenizer as the `tokenizer.*` keys of a GGUF.

It chooses the reader by what the files say of themselves; each kind has a module of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError, UsageError
from edgepack.export.tokenizer.bpe import is_byte_level, read_byte_level_bpe
from edgepack.export.tokenizer.chat_templates import chat_template_metadata, template_notes
from edgepack.export.tokenizer.escaped_bpe import read_escaped_bpe
from edgepack.export.tokenizer.files import TokenizerFiles, kind_of, member, read_files
from edgepack.export.tokenizer.pre_names import check_pre
from edgepack.export.tokenizer.rwkv_world import WORLD_FILE, read_rwkv_world
from edgepack.export.tokenizer.sentencepiece import (
    FILE_NAMES,
    read_json_beside_model,
    read_sentencepiece_vocabulary,
    whitespace_notes,
    with_own_names,
)
from edgepack.export.tokenizer.special_tokens import special_token_metadata
from edgepack.export.tokenizer.unigram import read_unigram_json
from edgepack.export.tokenizer.wordpiece import VOCAB_FILE, read_wordpiece_json, read_wordpiece_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgepack.gguf.types import Value


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF holds it.

    Attributes:
        metadata: all `tokenizer.*` keys.
        notes: a line where files say different things, or where llama.cpp does something else.
    """

    metadata: Mapping[str, Value]
    notes: tuple[str, ...] = ()


def read_vocabulary(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> dict[str, Value]:
    """As `open_vocabulary`, the metadata alone."""
    return dict(open_vocabulary(folder, config, pre=pre).metadata)


def open_vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    *,
    pre: str | None = None,
    model: Path | None = None,
    templates: Path | None = None,
) -> Vocabulary:
    """The tokenizer in `folder`, read as transformers reads it and written as llama.cpp's converter writes it.

    Args:
        folder: of the tokenizer, mostly a Hugging Face checkpoint's.
        config: the parsed `config.json`; `vocab_size` pads the table, ids fill what the tokenizer leaves open.
        pre: decides on `tokenizer.ggml.pre` where the structure of a BPE pre-tokenizer is not known.
        model: the model's folder, where that is another.
        templates: the folder of its chat template, where that is another.

    Raises:
        UsageError: `pre` is none of llama.cpp's names, or for a tokenizer that has none.
        TokenizerError: no tokenizer, an unknown one, or a vocabulary that contradicts itself or the model.
    """
    files = replace(read_files(folder, config, model=model), templates=templates)
    model_file = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
    if model_file is not None and not files.tokenizer:
        files = with_own_names(files, model_file)
    metadata, notes = _read_tokens(files, pre, model_file)
    kind = metadata["tokenizer.ggml.model"].value
    tokens = metadata["tokenizer.ggml.tokens"].value
    special, more = ({}, ()) if kind == "rwkv" else special_token_metadata(files, tokens, wordpiece=kind == "bert")
    texts = chat_template_metadata(files)
    return Vocabulary({**metadata, **special, **texts}, (*files.notes, *notes, *more, *template_notes(files)))


def _read_tokens(
    files: TokenizerFiles, pre: str | None, model_file: Path | None
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The keys of the table; `tokenizer.json` decides over the other files, as in transformers."""
    kind = kind_of(member(files.tokenizer, "model", dict, "tokenizer.json"))
    byte_level = kind == "BPE" and is_byte_level(files.tokenizer)
    if pre is not None:
        check_pre(pre)
        if not byte_level:
            raise UsageError(f"--pre '{pre}': only byte-level BPE has a pre-tokenizer by name, this is another kind")
    if byte_level:
        return read_byte_level_bpe(files, pre), ()
    if files.tokenizer and model_file is not None:
        return read_json_beside_model(files, model_file, _JSON_READERS.get(kind))
    if model_file is not None:
        return read_sentencepiece_vocabulary(files, model_file)
    if kind in _JSON_READERS:
        return _JSON_READERS[kind](files), whitespace_notes(files)
    if not files.tokenizer and (files.folder / VOCAB_FILE).is_file():
        return read_wordpiece_text(files), ()
    if not files.tokenizer and (files.folder / WORLD_FILE).is_file():
        return read_rwkv_world(files), ()
    if not files.tokenizer:
        raise TokenizerError(f"{files.folder}: expected tokenizer.json, tokenizer.model or vocab.txt, found none")
    raise TokenizerError(f"tokenizer.json: expected a model of type BPE, Unigram or WordPiece, got {kind[:80]!r}")


_JSON_READERS: Mapping[str, Callable[[TokenizerFiles], dict[str, Value]]] = {
    "BPE": read_escaped_bpe,
    "Unigram": read_unigram_json,
    "WordPiece": read_wordpiece_json,
}
