"""The files of a tokenizer in a checkpoint's folder, read with bounds and checked for their types.

What their contents mean is left to the readers of each kind.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.classes import CLASSES, as_loaded, class_name, default_names
from edgepack.export.tokenizer.tokens import AddedToken, check_id, check_text
from edgepack.file_kinds import describe, is_pointer
from edgepack.files.source import read_small

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MAX_JSON_BYTES = 1 << 28
"""Largest JSON file that is parsed; published tokenizers have about 35 MB."""

_VERSIONED = re.compile(r"tokenizer\.(\d{1,4}(?:\.\d{1,4}){0,3})\.json")
_TRANSFORMERS = (5, 23, 0)  # the version whose rules are followed


@dataclass(frozen=True)
class TokenizerFiles:
    """Everything that says how a model's text becomes ids.

    Attributes:
        folder: where the files lie.
        tokenizer: `tokenizer.json` as transformers has it once it is loaded, empty when there is none.
        settings: parsed `tokenizer_config.json`, changed by `special_tokens_map.json` where that counts.
        added: tokens added outside the trained vocabulary, by id, from all files that name some; those beyond
            the model's `vocab_size` are left out.
        config: the model's own configuration.
        generation: parsed `generation_config.json`, None when there is none.
        class_name: transformers' class, None where nothing names one.
        templates: the folder of chat templates, where that is another.
        notes: a line where files say different things, or where llama.cpp does something else.
    """

    folder: Path
    tokenizer: Mapping[str, Any]
    settings: Mapping[str, Any]
    added: Mapping[int, AddedToken]
    config: Mapping[str, Any]
    generation: Mapping[str, Any] | None = None
    class_name: str | None = None
    templates: Path | None = None
    notes: tuple[str, ...] = ()


def read_files(folder: Path, config: Mapping[str, Any], *, model: Path | None = None) -> TokenizerFiles:
    """Read the tokenizer's JSON files as transformers' `from_pretrained` does; absent ones are empty.

    Args:
        folder: of the tokenizer.
        config: the model's own configuration.
        model: the model's folder, where that is another.

    Raises:
        TokenizerError: a file that is too large, no JSON object, or has a member of a wrong type.
    """
    declared = read_json(folder / "tokenizer_config.json")
    path = _tokenizer_file(folder, declared)
    stored = read_json(path) or _parts_of_bpe(folder)
    settings, notes = _with_special_tokens_map(folder, declared)
    name = class_name(settings, config, stored)
    tokenizer, changes = as_loaded(name, settings, stored)
    generation = read_json(_beside(folder, model, "generation_config.json"), absent=None)
    listed = _listed_tokens(tokenizer)
    named = _decoder_tokens(settings)
    if "added_tokens_decoder" not in settings:
        special = {*_special_texts(settings)[0], *_special_texts(settings)[1]}
        named = _mapped_tokens(read_json(folder / "added_tokens.json"), set(listed), special)
    added = listed | named
    if path.is_file():
        if name in CLASSES and "added_tokens_decoder" in settings:
            listed = {}  # such a class builds itself of vocabulary and merges, and adds what the settings list
        usual = {key: text for key, text in default_names(name).items() if key not in settings}
        added = _as_added(tokenizer, listed, named, _special_texts(settings), usual)
    # a token without a row in the embedding can never be used; llama.cpp's converter leaves it out too
    size = config.get("vocab_size")
    usable = {i: token for i, token in added.items() if type(size) is not int or i < size}
    if len(usable) < len(added):
        left = added[max(added.keys() - usable.keys())]
        notes += (
            f"tokenizer: {len(added) - len(usable)} added tokens beyond vocab_size {size}: left out, {left.text!r}",
        )
    return TokenizerFiles(folder, tokenizer, settings, usable, config, generation, name, model, (*notes, *changes))


def _beside(folder: Path, model: Path | None, name: str) -> Path:
    """A file of the model: beside the tokenizer, or in the model's own folder."""
    return (model or folder) / name


def _tokenizer_file(folder: Path, settings: Mapping[str, Any]) -> Path:
    """`tokenizer.json`, or the newest version of it that is listed for this transformers (`fast_tokenizer_files`)."""
    listed = settings.get("fast_tokenizer_files")
    chosen = "tokenizer.json"
    versions = {}
    for name in listed if isinstance(listed, list) else []:
        match = _VERSIONED.fullmatch(name) if isinstance(name, str) else None
        if match:
            versions[tuple(int(part) for part in match[1].split("."))] = name
    for version in sorted(versions):
        if version <= _TRANSFORMERS:
            chosen = versions[version]
    return folder / chosen


def _parts_of_bpe(folder: Path) -> dict[str, Any]:
    """What `vocab.json` and `merges.txt` say, in the form of a `tokenizer.json`; empty where one is missing."""
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocab.is_file() or not merges.is_file():
        return {}
    lines = [line.strip() for line in read_text(merges).split("\n")]
    listed = [line for line in lines if line and not line.startswith("#version")]
    return {"model": {"type": "BPE", "vocab": read_json(vocab), "merges": listed}}


def _with_special_tokens_map(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`special_tokens_map.json` decides over tokenizer_config.json, unless that lists the tokens that were added."""
    mapped = read_json(folder / "special_tokens_map.json")
    differing = [key for key, value in mapped.items() if key in settings and _text_of(settings[key]) != _text_of(value)]
    if "added_tokens_decoder" in settings:
        taken, other, merged = "tokenizer_config.json", "special_tokens_map.json", settings
    else:
        taken, other, merged = "special_tokens_map.json", "tokenizer_config.json", {**settings, **mapped}
    return merged, tuple(f"special tokens: {key} is {taken}'s, not {other}'s" for key in sorted(differing))


def _text_of(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def _as_added(
    tokenizer: Mapping[str, Any],
    listed: Mapping[int, AddedToken],
    named: Mapping[int, AddedToken],
    special: tuple[list[str], list[str]],
    usual: Mapping[str, str],
) -> dict[int, AddedToken]:
    """Tokens of `tokenizer.json`, then what other files add: a text that is there keeps its id, others get the next.

    As `TokenizersBackend.__init__` does it: the id that another file states is only where it stands in the order.

    Args:
        tokenizer: parsed tokenizer.json.
        listed: what it adds itself.
        named: what `added_tokens_decoder` or `added_tokens.json` adds.
        special: texts that are special tokens by tokenizer_config.json: those of a role, which are special whatever
            another file says, and further ones.
        usual: role → text of the class's own special tokens; where the vocabulary has none of them they are left out.
    """
    ids = _vocabulary_ids(tokenizer) | {token.text: i for i, token in listed.items()}
    following = max(ids.values(), default=-1) + 1
    found = dict(listed)
    wanted = [named[index] for index in sorted(named)]
    roles = special[0] + [text for text in usual.values() if text in ids]
    wanted += [AddedToken(0, text, special=True) for text in [*roles, *special[1]]]
    for token in wanted:
        if token.text not in ids:
            ids[token.text], following = following, following + 1
        place = ids[token.text]
        known = found.get(place)
        if known is None or token in named.values():
            found[place] = replace(token, id=place)
        elif token.text in roles:
            found[place] = replace(known, special=True)
    return found


def _vocabulary_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Text → id of the trained vocabulary, as far as it is one."""
    vocab = member(tokenizer, "model", dict, "tokenizer.json").get("vocab")
    if isinstance(vocab, list):
        entries = [(entry[0], i) for i, entry in enumerate(vocab) if isinstance(entry, list) and entry]
    else:
        entries = list(vocab.items()) if isinstance(vocab, dict) else []
    return {text: index for text, index in entries if isinstance(text, str) and type(index) is int}


def _special_texts(settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Texts that tokenizer_config.json makes special tokens, those of a role first, as transformers adds them."""
    roles = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    own = {key: value for key, value in settings.items() if key.endswith("_token") and key not in roles}
    extra, old = settings.get("extra_special_tokens"), settings.get("additional_special_tokens")
    if isinstance(extra, dict):
        own |= extra
    listed = extra if isinstance(extra, list) and extra else old
    named = [settings.get(key) for key in roles] + list(own.values())
    return _texts(named), _texts(listed if isinstance(listed, list) else [])


def _texts(entries: Iterable[Any]) -> list[str]:
    texts = [_text_of(entry) for entry in entries]
    return list(dict.fromkeys(text for text in texts if isinstance(text, str) and text))


def read_json(path: Path, *, absent: Any = ()) -> Any:
    """A JSON object; where the file is absent `absent`, by default an empty object."""
    if not path.is_file():
        return dict(absent) if absent is not None else None
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path.name}: expected JSON, got {error}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path.name}: expected an object, got {type(content).__name__}")
    return content


def read_bytes(path: Path) -> bytes:
    """A file of bounded size; raises TokenizerError where it is larger, or a pointer instead of the file."""
    content = read_small(path, TokenizerError, MAX_JSON_BYTES)
    if is_pointer(content):
        raise TokenizerError(f"{path.name}: expected the file, got {describe(content)}")
    return content


def read_text(path: Path) -> str:
    """A UTF-8 file of bounded size; raises TokenizerError for any other."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path.name}: expected UTF-8, got {error}") from None


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


def _mapped_tokens(mapping: Mapping[str, Any], known: set[int], special: set[str]) -> dict[int, AddedToken]:
    tokens: dict[int, AddedToken] = {}
    for text, value in mapping.items():
        where = f"added_tokens.json: {text!r}"
        index = check_id(value, where)
        if index not in known:
            tokens[index] = AddedToken(index, check_text(text, where), special=text in special)
    return tokens


def _added_token(index: int, entry: Mapping[str, Any], where: str) -> AddedToken:
    text = check_text(entry.get("content"), where)
    return AddedToken(index, text, entry.get("special") is True, entry.get("normalized") is True)
