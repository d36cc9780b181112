"""Which ids begin, end and pad a sequence, and which of them are added to every text.

The rules are those of gguf-py's SpecialVocab: names in tokenizer_config.json first, then ids in config.json; a
post-processor's template decides what is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.files import TokenizerFiles, kind_of, member
from edgepack.gguf.types import Value, boolean, u32

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # llama.cpp's own spelling
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
_END_OF_MESSAGE = "<|eom_id|>"


def special_token_metadata(files: TokenizerFiles, tokens: Sequence[str]) -> dict[str, Value]:
    """The `*_token_id` and `add_*_token` keys.

    Args:
        files: the tokenizer's files.
        tokens: the finished table, id → text.

    Raises:
        TokenizerError: a special token's id beyond the vocabulary.
    """
    names = _special_names(files)
    ids = {role: tokens.index(text) for role, text in names.items() if text in tokens}
    for role in _KEYS:
        configured = _configured_id(files.config, role)
        if role not in ids and configured is not None:
            ids[role] = _within(configured, role, len(tokens))
    ids |= _end_of_turn(files, ids, tokens)
    metadata = {f"tokenizer.ggml.{_KEYS[role]}": u32(ids[role]) for role in _KEYS if role in ids}
    for role, added in _added_roles(files, names).items():
        if not added or role in ids:
            metadata[f"tokenizer.ggml.add_{role}_token"] = boolean(added)
    return metadata


def token_text(entry: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a string or an object with `content`."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _special_names(files: TokenizerFiles) -> dict[str, str]:
    """Role → text. BERT names its first and last token cls and sep alone."""
    names = {role: token_text(files.settings.get(f"{role}_token")) for role in _KEYS}
    first, last = _template_ends(files.tokenizer)
    names["bos"] = names["bos"] or names["cls"] or first
    if last is not None and last != names["eos"] and names["eos"] is not None:
        names["eot"], names["eos"] = names["eot"] or names["eos"], last
    names["eos"] = names["eos"] or names["sep"] or last
    return {role: text for role, text in names.items() if text is not None}


def _configured_id(config: Mapping[str, Any], role: str) -> int | None:
    """`config.json`'s id of a role; the first where it lists several."""
    value = config.get(f"{role}_token_id")
    if isinstance(value, list) and value:
        value = value[0]
    return value if type(value) is int and value >= 0 else None


def _within(index: int, role: str, size: int) -> int:
    if index >= size:
        raise TokenizerError(f"config.json: expected {role}_token_id below {size}, got {index}")
    return index


def _end_of_turn(files: TokenizerFiles, ids: Mapping[str, int], tokens: Sequence[str]) -> dict[str, int]:
    """Further ids that end generation: generation_config.json lists them, GGUF has keys for two."""
    listed = files.generation.get("eos_token_id", files.config.get("eos_token_id"))
    ends = [i for i in listed if type(i) is int and 0 <= i < len(tokens)] if isinstance(listed, list) else []
    others = [i for i in ends if i != ids.get("eos")]
    message = [i for i in others if tokens[i] == _END_OF_MESSAGE]
    turn = [i for i in others if i not in message]
    found = dict(zip(("eot", "eom"), turn[:2], strict=False))
    if message:
        found["eom"] = message[0]
    return {role: i for role, i in found.items() if role not in ids}


def _processors(tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    processor = member(tokenizer, "post_processor", dict, "tokenizer.json")
    listed = member(processor, "processors", list, "tokenizer.json: post_processor") or [processor]
    return [entry for entry in listed if isinstance(entry, dict)]


def _template_ends(tokenizer: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The special tokens that a post-processor puts first and last around one text."""
    first = last = None
    for processor in _processors(tokenizer):
        if kind_of(processor) in {"RobertaProcessing", "BertProcessing"}:
            first, last = _pair_text(processor.get("cls")), _pair_text(processor.get("sep"))
        single = member(processor, "single", list, "tokenizer.json: post_processor")
        if kind_of(processor) == "TemplateProcessing" and len(single) > 1:
            first, last = _piece_text(single[0]), _piece_text(single[-1])
    return first, last


def _pair_text(entry: Any) -> str | None:
    return entry[0] if isinstance(entry, list) and entry and isinstance(entry[0], str) else None


def _piece_text(entry: Any) -> str | None:
    special = entry.get("SpecialToken") if isinstance(entry, dict) else None
    text = special.get("id") if isinstance(special, dict) else None
    return text if isinstance(text, str) else None


def _added_roles(files: TokenizerFiles, names: Mapping[str, str]) -> dict[str, bool]:
    """Whether bos, eos (and sep) are added: the post-processor says, else tokenizer_config.json."""
    declared = {role: files.settings.get(f"add_{role}_token") for role in ("bos", "eos", "sep")}
    roles = {role: flag for role, flag in declared.items() if isinstance(flag, bool)}
    kinds = {kind_of(processor) for processor in _processors(files.tokenizer)}
    if kinds & {"TemplateProcessing", "RobertaProcessing", "BertProcessing"}:
        first, last = _template_ends(files.tokenizer)
        roles["bos"] = first is not None and first == names.get("bos")
        roles["eos"] = last is not None and last == names.get("eos")
        if kinds & {"RobertaProcessing", "BertProcessing"}:
            roles["sep"] = True
    elif "ByteLevel" in kinds:
        roles |= {"bos": False, "eos": False}
    return roles
