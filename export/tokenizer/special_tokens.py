"""Which ids begin, end and pad a sequence, and which of them are added to every text.

Names of the tokenizer's files first, then ids in config.json, as gguf-py's SpecialVocab has it; a post-processor's
template decides what is added, generation_config.json what ends generation, as transformers has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.classes import default_names
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
_AROUND_WORDPIECE = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
_END_OF_MESSAGE = "<|eom_id|>"
# Texts by which llama.cpp knows an end of generation (llama_vocab::impl::load in llama-vocab.cpp of 0.3.36).
KNOWN_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>",
    "<end_of_utterance>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
})  # fmt: skip


def special_token_metadata(
    files: TokenizerFiles, tokens: Sequence[str], *, wordpiece: bool = False
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The `*_token_id` and `add_*_token` keys, and a line for each thing that they cannot say.

    Args:
        files: the tokenizer's files.
        tokens: the finished table, id → text.
        wordpiece: llama.cpp will put its bos and sep around every text, whatever the keys say.

    Raises:
        TokenizerError: a special token's id beyond the vocabulary; WordPiece without what llama.cpp puts around texts.
    """
    names = _special_names(files, _AROUND_WORDPIECE if wordpiece else {})
    ids = {role: tokens.index(text) for role, text in names.items() if text in tokens}
    for role in _KEYS:
        configured = _configured_id(files.config, role)
        if role not in ids and configured is not None:
            ids[role] = _within(configured, role, len(tokens))
    ends, notes = end_tokens(files, ids, tokens)
    notes = (*_other_ids(files, ids), *notes)
    ids |= ends
    metadata = {f"tokenizer.ggml.{_KEYS[role]}": u32(ids[role]) for role in _KEYS if role in ids}
    roles = _added_roles(files, names)
    for role, added in roles.items():
        if not added or role in ids:
            metadata[f"tokenizer.ggml.add_{role}_token"] = boolean(added)
    if wordpiece:
        notes = (*notes, *_wordpiece_notes(ids, roles, tokens))
    return metadata, (*notes, *_surplus(files, names))


def _wordpiece_notes(ids: Mapping[str, int], roles: Mapping[str, bool], tokens: Sequence[str]) -> tuple[str, ...]:
    """A line where llama.cpp puts tokens around a text and the original does not."""
    missing = [role for role in ("bos", "sep") if role not in ids]
    if missing:
        raise TokenizerError(
            "tokenizer: llama.cpp's WordPiece puts a first and a last token around every text: expected cls_token and"
            " sep_token, found none in the vocabulary"
        )
    if not roles or (roles.get("bos") and roles.get("eos")):
        return ()
    first, last = tokens[ids["bos"]], tokens[ids["sep"]]
    return (f"tokenizer: llama.cpp puts {first} and {last} around every text, the original does not",)


def _other_ids(files: TokenizerFiles, ids: Mapping[str, int]) -> tuple[str, ...]:
    """A line where config.json has another id for what begins or pads a text than the tokenizer."""
    notes = []
    for role in ("bos", "pad"):
        configured = _configured_id(files.config, role)
        if configured is not None and ids.get(role, configured) != configured:
            notes.append(f"special tokens: {role} is the tokenizer's {ids[role]}, not config.json's {configured}")
    return tuple(notes)


def token_text(entry: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a string or an object with `content`."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _special_names(files: TokenizerFiles, usual: Mapping[str, str]) -> dict[str, str]:
    """Role → text. BERT names its first and last token cls and sep alone."""
    settings = {**usual, **default_names(files.class_name), **files.settings}
    names = {role: token_text(settings.get(f"{role}_token")) for role in _KEYS}
    first, last = _template_ends(files.tokenizer)
    names["bos"] = first if first is not None and first == names["cls"] else names["bos"] or names["cls"] or first
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


def end_tokens(
    files: TokenizerFiles, ids: Mapping[str, int], tokens: Sequence[str]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Further ids that end generation, and a line where they are not what the file says.

    `generation_config.json` decides, without one `config.json`: one id or a list, whatever the tokenizer's own is.
    GGUF has keys for two beside the tokenizer's; llama.cpp knows some more by their text.
    """
    where, listed = _listed_ends(files)
    ends = list(dict.fromkeys(i for i in listed if 0 <= i < len(tokens)))
    others = [i for i in ends if i != ids.get("eos")]
    message = [i for i in others if tokens[i] == _END_OF_MESSAGE]
    free = [role for role in ("eot", "eom") if role not in ids and not (role == "eom" and message)]
    turn = [i for i in others if i not in message and i not in ids.values()]
    if len(turn) > len(free):  # the keys are for those that llama.cpp does not know by their text
        turn.sort(key=lambda i: tokens[i] in KNOWN_ENDS)
    found = dict(zip(free, turn, strict=False))
    if message and "eom" not in ids:
        found["eom"] = message[0]
    held = {*ids.values(), *found.values()}
    notes = []
    left = [i for i in ends if i not in held and tokens[i] not in KNOWN_ENDS]
    if left:
        shown = ", ".join(f"{i} ({tokens[i]!r})" for i in left)
        notes.append(f"stop tokens: {where} has more eos ids than GGUF has keys for, left out: {shown}")
    if ends and "eos" in ids and ids["eos"] not in ends:
        notes.append(
            f"stop tokens: the tokenizer's eos {ids['eos']} ends a text too, though not among {where}'s {ends}"
        )
    beyond = [i for i in listed if i >= len(tokens)]
    if beyond:
        notes.append(f"stop tokens: {where} has eos ids beyond the vocabulary, left out: {beyond}")
    return found, tuple(notes)


def _listed_ends(files: TokenizerFiles) -> tuple[str, list[int]]:
    """The file that says what ends generation, and its ids."""
    where, value = "config.json", files.config.get("eos_token_id")
    if files.generation is not None and files.generation.get("eos_token_id") is not None:
        where, value = "generation_config.json", files.generation.get("eos_token_id")
    listed = value if isinstance(value, list) else [value]
    return where, [i for i in listed if type(i) is int and i >= 0]


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
    """Whether bos, eos (and sep) are added: the post-processor says; without a tokenizer.json its settings.

    Where there is a tokenizer.json, transformers takes no notice of `add_bos_token` and `add_eos_token`.
    """
    if not files.tokenizer:
        declared = {role: files.settings.get(f"add_{role}_token") for role in ("bos", "eos", "sep")}
        roles = {role: flag for role, flag in declared.items() if isinstance(flag, bool)}
        return ({} if files.class_name is None else {"bos": False, "eos": False}) | roles
    roles = {"bos": False, "eos": False}
    kinds = {kind_of(processor) for processor in _processors(files.tokenizer)}
    if kinds & {"TemplateProcessing", "RobertaProcessing", "BertProcessing"}:
        first, last = _template_ends(files.tokenizer)
        roles["bos"] = first is not None and first == names.get("bos")
        roles["eos"] = last is not None and last == names.get("eos")
        if kinds & {"RobertaProcessing", "BertProcessing"}:
            roles["sep"] = True
    return roles


def _surplus(files: TokenizerFiles, names: Mapping[str, str]) -> tuple[str, ...]:
    """What a post-processor adds and llama.cpp cannot: another token than bos in front, or more than one on a side."""
    for processor in _processors(files.tokenizer):
        single = member(processor, "single", list, "tokenizer.json: post_processor")
        if kind_of(processor) != "TemplateProcessing" or not single:
            continue
        pieces = [_piece_text(entry) for entry in single]
        texts = pieces.index(None) if None in pieces else len(pieces)
        before, after = pieces[:texts], pieces[texts + 1 :]
        if len(before) > 1 or len(after) > 1 or (before and before[0] != names.get("bos")):
            shown = " ".join(piece or "TEXT" for piece in pieces)
            return (f"tokenizer: the original makes {shown!r} of a text, llama.cpp adds bos and eos at most",)
    return ()
