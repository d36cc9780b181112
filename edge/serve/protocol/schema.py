"""JSON schemas as clients send them: small enough to be made into a grammar, and without endless references.

llama.cpp says whether it can express one; here is refused what would cost it minutes or gigabytes to find out.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.constraints.schema_grammar import UnsupportedSchemaError, schema_to_gbnf
from edgepack.edge.serve.protocol.errors import RequestError
from edgepack.edge.serve.protocol.fields import wrong
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.edge.serve.protocol.facts import ServedFacts

_MOST_PARTS = 10_000
_DEEPEST = 64
# A least number of repetitions is written out, a largest one is not: what an answer must be as long as.
_MOST_LEAST = 10_000
_MOST_PATTERN = 1000
_LEAST = ("minLength", "minItems", "minProperties")
_MOST_OPTIONAL = 512


def check_schema(schema: Any, param: str) -> None:
    """Refuse a schema that is none, or too large to be followed.

    Raises:
        RequestError: names `param` and the part.
    """
    if not isinstance(schema, (dict, bool)):
        raise wrong(param, "a JSON schema", schema)
    for count, (path, part) in enumerate(_parts(schema, param), start=1):
        if count > _MOST_PARTS:
            raise RequestError(f"{param}: expected a schema of at most {_MOST_PARTS} parts", param)
        if isinstance(part, dict):
            _check_part(part, path, param)
    _check_references(schema, param)
    _check_sense(schema, param)


def _check_sense(schema: Any, param: str) -> None:
    """Refuse what nothing can satisfy: the engine would let every answer pass and say nothing."""
    try:
        schema_to_gbnf(json.dumps(schema))
    except UnsupportedSchemaError:
        return  # the engine's own converter knows more keywords
    except UsageError as error:
        raise RequestError(f"{param}: {error}", param) from error


def schema_as_grammar(body: dict[str, Any], facts: ServedFacts) -> None:
    """Put GBNF in the place of a checked schema where llguidance would misread the vocabulary; changes `body`.

    It reads each token of a SentencePiece vocabulary without its leading space (llama_detokenize of one token), finds
    that the text breaks the schema, and lets everything pass.

    Raises:
        RequestError: the schema has a keyword that GBNF is not made of.
    """
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else None
    none = kind in (None, "text") and body.get("json_schema") is None
    calls = body.get("tools") and body.get("tool_choice") != "none"  # llama.cpp takes no grammar beside tools
    if not facts.sentencepiece or none or calls:
        return
    schema = body.pop("json_schema", None)
    if isinstance(form, dict) and kind != "text":
        del body["response_format"]
        schema = form["json_schema"]["schema"] if kind == "json_schema" else form.get("schema", {"type": "object"})
    try:
        body["grammar"] = schema_to_gbnf(json.dumps(schema))
    except UsageError as error:
        raise RequestError(f"response_format: {error}", "response_format") from error


def _parts(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        raise RequestError(f"{path}: expected a schema nested at most {_DEEPEST} deep", path.split("/", 1)[0])
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if isinstance(child, (dict, list)):
            yield from _parts(child, f"{path}/{key}", depth + 1)


def _check_part(part: dict[str, Any], path: str, param: str) -> None:
    for name in _LEAST:
        value = part.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > _MOST_LEAST:
            raise RequestError(f"{path}: {name}: expected at most {_MOST_LEAST}, got {value}", param)
    pattern = part.get("pattern")
    if isinstance(pattern, str) and len(pattern) > _MOST_PATTERN:
        raise RequestError(f"{path}: pattern: expected at most {_MOST_PATTERN} characters, got {len(pattern)}", param)
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error as error:
            raise RequestError(f"{path}: pattern: {error}", param) from error
    properties = part.get("properties")
    if isinstance(properties, dict) and len(properties) > _MOST_OPTIONAL:
        raise RequestError(f"{path}: expected at most {_MOST_OPTIONAL} properties, got {len(properties)}", param)


def _check_references(schema: Any, param: str) -> None:
    """Refuse references that lead to themselves without anything between: nothing ever follows such a schema."""
    for _path, part in _parts(schema, param):
        seen: set[str] = set()
        while isinstance(part, dict) and isinstance(reference := part.get("$ref"), str):
            if reference in seen or reference == "#":
                raise RequestError(f"{param}: $ref {reference!r} refers to itself", param)
            seen.add(reference)
            part = _target(schema, reference)


def _target(schema: Any, reference: str) -> Any:
    """What `#/a/b` refers to; None where nothing is."""
    if not reference.startswith("#/"):
        return None
    found = schema
    for step in reference[2:].split("/"):
        if not isinstance(found, dict):
            return None
        found = found.get(step.replace("~1", "/").replace("~0", "~"))
    return found
