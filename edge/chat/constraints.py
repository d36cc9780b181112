"""Grammars that an answer must follow: GBNF as it is, or made from a JSON schema."""

from __future__ import annotations

import json
from pathlib import Path

from edgepack.errors import UsageError
from edgepack.text_file import read_text


def choose_grammar(grammar: str | None, schema: str | None) -> str | None:
    """The GBNF text of an option's value: the text itself, or `@FILE`.

    Raises:
        UsageError: both were given, a file cannot be read, or the schema is not one.
    """
    if grammar is not None and schema is not None:
        raise UsageError("--grammar and --json-schema: expected one of them, got both")
    if grammar is not None:
        return _text(grammar)
    if schema is None:
        return None
    return schema_grammar(_text(schema))


def schema_grammar(schema: str) -> str:
    """GBNF for what a JSON schema allows.

    Raises:
        UsageError: the text is not a JSON schema that can be expressed.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        if not isinstance(json.loads(schema), (dict, bool)):
            raise UsageError("JSON schema: expected an object")
        return str(json_schema_to_gbnf(schema))
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError, AttributeError, NotImplementedError) as e:
        raise UsageError(f"JSON schema: it cannot be made into a grammar: {e or type(e).__name__}") from e


def _text(value: str) -> str:
    return read_text(Path(value[1:])) if value.startswith("@") else value
