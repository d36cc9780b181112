"""A GGUF's tokenizer as the files of a Hugging Face folder: tokenizer.json, its settings, templates, generation.

tokenizer.json itself is `export.backwards.tokenizer_json`'s. What was written is read again as the export reads it,
and held against the GGUF.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.backwards.tokenizer_json import GGUFVocabulary, tokenizer_json
from edgepack.export.tokenizer.split_expressions import KNOWN_STRUCTURES
from edgepack.export.tokenizer.tokens import TokenType
from edgepack.export.tokenizer.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.gguf.types import Value

_ROLES = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip
# Tokens that may be named: transformers looks for a named one before it splits a text, whatever it was.
_NAMED = frozenset({TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED})
_ENDS = ("eos", "eot", "eom")
_SAMPLING = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}  # gguf-py's → transformers' names
_TEMPLATE = "tokenizer.chat_template"


def write_tokenizer(metadata: Mapping[str, Value], config: Mapping[str, Any], folder: Path) -> None:
    """Write the files into `folder`.

    Args:
        metadata: of the GGUF.
        config: config.json, as transformers chooses the tokenizer's class by it.
        folder: exists.

    Raises:
        TokenizerError: a vocabulary that cannot be read backwards, or that another would be read of.
    """
    vocabulary = GGUFVocabulary.of(metadata)
    _write(folder / "tokenizer.json", tokenizer_json(vocabulary))
    _write(folder / "tokenizer_config.json", _settings(vocabulary, config))
    _write(folder / "generation_config.json", _generation(vocabulary, metadata))
    _write_templates(metadata, folder)
    _check(vocabulary, read_vocabulary(folder, config))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _settings(vocabulary: GGUFVocabulary, config: Mapping[str, Any]) -> dict[str, Any]:
    names = {}
    for role, ours in _ROLES.items():
        index = vocabulary.id_of(ours)
        if index is not None and vocabulary.types[index] in _NAMED:
            names[f"{role}_token"] = vocabulary.tokens[index]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "add_bos_token": vocabulary.adds("bos"),
        "add_eos_token": vocabulary.adds("eos"),
        "add_prefix_space": bool(vocabulary.get("add_space_prefix", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.get("max_position_embeddings") or config.get("n_positions") or 2**20,
    }


def _generation(vocabulary: GGUFVocabulary, metadata: Mapping[str, Value]) -> dict[str, Any]:
    """What ends a text, and the publisher's own settings of sampling."""
    ends = [index for role in _ENDS if (index := vocabulary.id_of(role)) is not None]
    found: dict[str, Any] = {"bos_token_id": vocabulary.id_of("bos"), "pad_token_id": vocabulary.id_of("padding")}
    if ends:
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for key, value in metadata.items():
        name = key.removeprefix("general.sampling.")
        if name != key:
            found[_SAMPLING.get(name, name)] = value.value
            found["do_sample"] = True
    return {key: value for key, value in found.items() if value is not None}


def _write_templates(metadata: Mapping[str, Value], folder: Path) -> None:
    if _TEMPLATE in metadata:
        (folder / "chat_template.jinja").write_text(str(metadata[_TEMPLATE].value), encoding="utf-8")
    others = [key for key in metadata if key.startswith(f"{_TEMPLATE}.")]
    for key in others:
        extra = folder / "additional_chat_templates"
        extra.mkdir(exist_ok=True)
        name = "".join(each if each.isalnum() or each == "_" else "_" for each in key.removeprefix(f"{_TEMPLATE}."))
        (extra / f"{name}.jinja").write_text(str(metadata[key].value), encoding="utf-8")


def _check(vocabulary: GGUFVocabulary, read: Mapping[str, Value]) -> None:
    """Raise TokenizerError unless the files are read as the vocabulary that they were made of."""
    made = GGUFVocabulary.of(read)
    used = [i for i, kind in enumerate(vocabulary.types) if kind != TokenType.UNUSED]
    for key in ("model", "merges", "add_space_prefix", "remove_extra_whitespaces", "precompiled_charsmap"):
        if key in ("model", "merges") or made.get(key) is not None:
            _same(key, vocabulary.get(key, made.get(key)), made.get(key))
    _same("tokens", [vocabulary.tokens[i] for i in used], [made.tokens[i] for i in used if i < len(made.tokens)])
    if vocabulary.kind == "gpt2":
        _same("pre", _splits(vocabulary.pre), _splits(made.pre))
    for role in ("bos", "eos"):
        _same(f"add_{role}_token", vocabulary.adds(role), made.adds(role))


def _splits(name: str) -> object:
    """What two names that mean the same have in common."""
    return next((steps for steps, names in KNOWN_STRUCTURES.items() if any(each.name == name for each in names)), name)


def _same(key: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        shown = (
            "" if isinstance(theirs, list) else f" is {theirs!r} in the file, {ours!r} as transformers would read it"
        )
        raise TokenizerError(f"tokenizer.ggml.{key}{shown or ' would be another'}: the tokenizer cannot be read back")
