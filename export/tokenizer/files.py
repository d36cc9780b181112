"""The files of a tokenizer in a checkpoint's folder, read with bounds and checked for their types.

What their contents mean is left to the readers of each kind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.tokens import AddedToken, check_id, check_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_JSON_BYTES = 1 << 28
"""Largest JSON file that is parsed; published tokenizers have about 35 MB."""


@dataclass(frozen=True)
class TokenizerFiles:
    """Everything that says how a model's text becomes ids.

    Attributes:
        folder: where the files lie.
        tokenizer: parsed `tokenizer.json`, empty when there is none.
        settings: parsed `tokenizer_config.json`, with what `special_tokens_map.json` adds.
        added: tokens added outside the trained vocabulary, by id, from all files that name some; those beyond
            the model's `vocab_size` are left out.
        config: the model's own configuration.
        generation: parsed `generation_config.json`.
    """

    folder: Path
    tokenizer: Mapping[str, Any]
    settings: Mapping[str, Any]
    added: Mapping[int, AddedToken]
    config: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)


def read_files(folder: Path, config: Mapping[str, Any]) -> TokenizerFiles:
    """Read the tokenizer's JSON files; absent ones are empty.

    Raises:
        TokenizerError: a file that is too large, no JSON object, or has a member of a wrong type.
    """
    tokenizer = read_json(folder / "tokenizer.json")
    settings = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
    generation = read_json(folder / "generation_config.json")
    added = _listed_tokens(tokenizer) | _decoder_tokens(settings)
    added |= _mapped_tokens(read_json(folder / "added_tokens.json"), set(added))
    # a token without a row in the embedding can never be used; llama.cpp's converter leaves it out too
    size = config.get("vocab_size")
    usable = {i: token for i, token in added.items() if type(size) is not int or i < size}
    return TokenizerFiles(folder, tokenizer, settings, usable, config, generation)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file is absent."""
    if not path.is_file():
        return {}
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise TokenizerError(f"{path.name}: expected at most {MAX_JSON_BYTES} bytes, got {size}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path.name}: expected JSON, got {error}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path.name}: expected an object, got {type(content).__name__}")
    return content


def member(parent: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """`parent[key]`, or an empty `kind` when it is absent or null.

    Raises:
        TokenizerError: it has another type.
    """
    value = parent.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TokenizerError(f"{where}.{key}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def kind_of(entry: Mapping[str, Any]) -> str:
    """The `type` of a step or a model, shown as text where it is none."""
    kind = entry.get("type")
    return kind if isinstance(kind, str) else repr(kind)


def _listed_tokens(tokenizer: Mapping[str, Any]) -> dict[int, AddedToken]:
    tokens: dict[int, AddedToken] = {}
    for index, entry in enumerate(member(tokenizer, "added_tokens", list, "tokenizer.json")):
        where = f"tokenizer.json: added_tokens[{index}]"
        if not isinstance(entry, dict):
            raise TokenizerError(f"{where}: expected an object, got {type(entry).__name__}")
        token = _added_token(check_id(entry.get("id"), where), entry, where)
        if token.id in tokens and tokens[token.id].text != token.text:
            raise TokenizerError(f"{where}: id {token.id} is {tokens[token.id].text!r} already, got {token.text!r}")
        tokens[token.id] = token
    return tokens


def _decoder_tokens(settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    tokens: dict[int, AddedToken] = {}
    for key, entry in member(settings, "added_tokens_decoder", dict, "tokenizer_config.json").items():
        where = f"tokenizer_config.json: added_tokens_decoder[{key!r}]"
        if not (key.isascii() and key.isdigit() and len(key) < 10 and isinstance(entry, dict)):
            raise TokenizerError(f"{where}: expected an id and an object")
        token = _added_token(check_id(int(key), where), entry, where)
        tokens[token.id] = token
    return tokens


def _mapped_tokens(mapping: Mapping[str, Any], known: set[int]) -> dict[int, AddedToken]:
    tokens: dict[int, AddedToken] = {}
    for text, value in mapping.items():
        where = f"added_tokens.json: {text!r}"
        index = check_id(value, where)
        if index not in known:
            tokens[index] = AddedToken(index, check_text(text, where), special=False)
    return tokens


def _added_token(index: int, entry: Mapping[str, Any], where: str) -> AddedToken:
    text = check_text(entry.get("content"), where)
    return AddedToken(index, text, entry.get("special") is True, entry.get("normalized") is True)
