"""The one entry of this folder: a checkpoint's tokenizer as the `tokenizer.*` keys of a GGUF.

It chooses the reader by what the files say of themselves; each kind has a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.export.tokenizer.bpe import read_byte_level_bpe
from edgepack.export.tokenizer.chat_templates import chat_template_metadata
from edgepack.export.tokenizer.files import TokenizerFiles, member, read_files
from edgepack.export.tokenizer.sentencepiece import FILE_NAME, read_sentencepiece_vocabulary
from edgepack.export.tokenizer.special_tokens import special_token_metadata

from edgepack.errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Mapping
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
    if (files.folder / FILE_NAME).is_file():
        return read_sentencepiece_vocabulary(files)
    kind = member(files.tokenizer, "model", dict, "tokenizer.json").get("type")
    if kind == "BPE":
        return read_byte_level_bpe(files, pre)
    if not files.tokenizer:
        raise TokenizerError(f"{files.folder}: expected tokenizer.json or {FILE_NAME}, found neither")
    raise TokenizerError(f"tokenizer.json: expected a model of type BPE, got {str(kind)[:80]!r}")
