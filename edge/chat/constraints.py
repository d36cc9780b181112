"""Grammars and JSON schemas that an answer must follow, as options spell them; trying them is `llama`'s."""

from __future__ import annotations

from pathlib import Path

from edgepack.edge.llama.constraints.check import check_schema
from edgepack.errors import UsageError
from edgepack.text_file import read_text


def read_constraints(grammar: str | None, schema: str | None) -> tuple[str | None, str | None]:
    """(GBNF, JSON schema) of two options' values, each the text itself or `@FILE`; at most one is not None.

    Raises:
        UsageError: both were given, a file cannot be read, or the schema is not one.
    """
    if grammar is not None and schema is not None:
        raise UsageError("--grammar and --json-schema: expected one of them, got both")
    if schema is None:
        return (None if grammar is None else _text(grammar)), None
    text = _text(schema)
    check_schema(text)
    return None, text


def _text(value: str) -> str:
    return read_text(Path(value[1:])) if value.startswith("@") else value
