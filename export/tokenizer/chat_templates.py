"""Chat templates of a checkpoint, wherever it keeps them, as GGUF keys; rendering is left to the device."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.files import TokenizerFiles, read_json
from edgepack.files.source import read_small
from edgepack.gguf.reader import MAX_TEMPLATE_CHARACTERS
from edgepack.gguf.types import Value, ValueType, array, string

if TYPE_CHECKING:
    from pathlib import Path

_MAX_TEMPLATE_BYTES = 4 * MAX_TEMPLATE_CHARACTERS
_HALF = re.compile("[\ud800-\udfff]")
_DEFAULT = "default"


def chat_template_metadata(files: TokenizerFiles) -> dict[str, Value]:
    """`tokenizer.chat_template` for the default one, `tokenizer.chat_template.NAME` for each other.

    Templates in files of their own (chat_template.jinja, additional_chat_templates/*.jinja) decide over the field of
    tokenizer_config.json, that over chat_template.json, as transformers has it.

    Raises:
        TokenizerError: a template that is no text or too large.
    """
    templates = _read_templates(files)
    for text in templates.values():
        _check_text(text)
    metadata = {}
    if _DEFAULT in templates:
        metadata["tokenizer.chat_template"] = string(templates[_DEFAULT])
    others = sorted(name for name in templates if name != _DEFAULT)
    if others:
        metadata["tokenizer.chat_templates"] = array(ValueType.STRING, others)
    return metadata | {f"tokenizer.chat_template.{name}": string(templates[name]) for name in others}


def template_notes(files: TokenizerFiles) -> tuple[str, ...]:
    """A line where a template in a file of its own differs from the field of tokenizer_config.json."""
    own, declared = _in_files(files), files.settings.get("chat_template")
    if not own or declared is None or own == _declared(declared):
        return ()
    return ("chat template: the file of its own is taken, as transformers does, not tokenizer_config.json's field",)


def _read_templates(files: TokenizerFiles) -> dict[str, str]:
    own = _in_files(files)
    if own:
        return own
    declared = files.settings.get("chat_template")
    if declared is None:
        declared = read_json(files.folder / "chat_template.json").get("chat_template")
    return {} if declared is None else _declared(declared)


def _in_files(files: TokenizerFiles) -> dict[str, str]:
    folder = files.templates or files.folder
    jinja = folder / "chat_template.jinja"
    extra = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    found = {_DEFAULT: _read_text(jinja)} if jinja.is_file() else {}
    return found | {_check_name(path.stem): _read_text(path) for path in extra}


def _declared(declared: Any) -> dict[str, str]:
    if isinstance(declared, dict):  # transformers 4.43 could write {name: template}
        declared = [{"name": name, "template": text} for name, text in declared.items()]
    entries = declared if isinstance(declared, list) else [{"name": _DEFAULT, "template": declared}]
    return dict(map(_read_entry, entries))


def _read_entry(entry: Any) -> tuple[str, str]:
    name, template = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(template, str):
        raise TokenizerError("chat_template: expected a text or a list of names with templates")
    return _check_name(name), template


def _check_text(text: str) -> None:
    """Refuse what no device would run, and what is no text."""
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise TokenizerError(f"chat_template: expected at most {MAX_TEMPLATE_CHARACTERS} characters, got {len(text)}")
    if (half := _HALF.search(text)) is not None:
        raise TokenizerError(f"chat_template: expected characters, got {half[0]!r}, half of a surrogate pair")


def _check_name(name: str) -> str:
    """The name as a part of a key, as gguf-py cleans it."""
    clean = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    if not clean or len(clean) > 64:
        raise TokenizerError(f"chat_template: expected a name of 1 to 64 characters, got {name[:80]!r}")
    return clean


def _read_text(path: Path) -> str:
    raw = read_small(path, TokenizerError, _MAX_TEMPLATE_BYTES)
    try:
        return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path.name}: expected UTF-8, got {error}") from None
