"""The one entry of this folder: a checkpoint's tokenizer as the `tokenizer.*` keys of a GGUF.

It chooses the reader by what the files say of themselves; each kind has a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.bpe import is_byte_level, read_byte_level_bpe
from edgepack.export.tokenizer.chat_templates import chat_template_metadata
from edgepack.export.tokenizer.escaped_bpe import read_escaped_bpe
from edgepack.export.tokenizer.files import TokenizerFiles, kind_of, member, read_files
from edgepack.export.tokenizer.sentencepiece import FILE_NAMES, read_sentencepiece_vocabulary
from edgepack.export.tokenizer.special_tokens import special_token_metadata
from edgepack.export.tokenizer.unigram import read_unigram_json
from edgepack.export.tokenizer.wordpiece import VOCAB_FILE, read_wordpiece_json, read_wordpiece_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgepack.gguf.types import Value


def read_vocabulary(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> dict[str, Value]:
    """All `tokenizer.*` metadata of the model in `folder`, as llama.cpp's converter writes it.

    Args:
        folder: a Hugging Face checkpoint's folder.
        config: its parsed `config.json`; `vocab_size` pads the table, ids fill what the tokenizer leaves open.
        pre: decides on `tokenizer.ggml.pre` where the structure of a BPE pre-tokenizer is not known.

    Raises:
        TokenizerError: no tokenizer, an unknown one, or a vocabulary that contradicts itself or the model.
    """
    files = read_files(folder, config)
    metadata = _read_tokens(files, pre)
    metadata |= special_token_metadata(files, metadata["tokenizer.ggml.tokens"].value)
    return metadata | chat_template_metadata(files)


def _read_tokens(files: TokenizerFiles, pre: str | None) -> dict[str, Value]:
    kind = kind_of(member(files.tokenizer, "model", dict, "tokenizer.json"))
    byte_level = kind == "BPE" and (pre is not None or is_byte_level(files.tokenizer))
    model_file = next((files.folder / name for name in FILE_NAMES if (files.folder / name).is_file()), None)
    if model_file is not None and not byte_level:
        return read_sentencepiece_vocabulary(files, model_file)
    if kind == "BPE":
        return read_byte_level_bpe(files, pre) if byte_level else read_escaped_bpe(files)
    if kind in _JSON_READERS:
        return _JSON_READERS[kind](files)
    if not files.tokenizer and (files.folder / VOCAB_FILE).is_file():
        return read_wordpiece_text(files)
    if not files.tokenizer:
        raise TokenizerError(f"{files.folder}: expected tokenizer.json, tokenizer.model or vocab.txt, found none")
    raise TokenizerError(f"tokenizer.json: expected a model of type BPE, Unigram or WordPiece, got {kind[:80]!r}")


_JSON_READERS: Mapping[str, Callable[[TokenizerFiles], dict[str, Value]]] = {
    "Unigram": read_unigram_json,
    "WordPiece": read_wordpiece_json,
}
