"""Whether an engine can follow a grammar or a JSON schema, found out before it is asked to, with the reason if not.

Trying it is `worker`'s, in a process of its own; what is generated is left to the engines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.constraints.schema_grammar import UnsupportedSchemaError, schema_to_gbnf
from edgepack.edge.llama.libraries import llama_library_path
from edgepack.errors import UsageError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from edgepack.edge.llama.engine import EngineName
    from edgepack.edge.llama.options import SamplingOptions
    from edgepack.gguf.reader import GGUFHeader

_SECONDS = 20.0
_LONGEST = 65_535  # least lengths above it: no context holds such an answer, and llguidance counts symbols in 16 bits
_LEAST_LENGTHS = ("minLength", "minItems", "minProperties", "minContains")
_DEEPEST = 200  # levels of a schema: both converters recurse
_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class Constraint:
    """What an engine is given to follow: GBNF, a JSON schema, or nothing."""

    grammar: str | None = None
    json_schema: str | None = None


def followed_constraint(engine: EngineName, options: SamplingOptions, header: GGUFHeader | None = None) -> Constraint:
    """What `engine` is to be given so that an answer follows the grammar or schema of `options`.

    A schema becomes GBNF, the same for both engines. What that does not express, xllamacpp's llguidance follows on
    vocabularies of byte pairs, llama-cpp-python by its own converter. On SentencePiece vocabularies llguidance reads
    each token without its leading space (llama_detokenize of one token), then lets everything pass: not asked there.

    Raises:
        UsageError: the grammar or the schema cannot be followed; the text says why.
    """
    if options.grammar is not None:
        return Constraint(grammar=_tried(engine, options.grammar, None))
    if options.json_schema is None:
        return Constraint()
    check_schema(options.json_schema)
    try:
        return Constraint(grammar=_tried(engine, schema_to_gbnf(options.json_schema), options.json_schema))
    except UnsupportedSchemaError:
        if engine == "llama-cpp-python":
            return Constraint(grammar=_tried(engine, None, options.json_schema))
        if header is None or header.get(keys.TOKENIZER_MODEL) != "gpt2":
            raise
    return Constraint(json_schema=_compact(options.json_schema))


def _compact(schema: str) -> str:
    """A schema for llguidance, checked; without a word it lets a model fill the context with white space."""
    _tried("xllamacpp", None, schema)
    return json.dumps({**json.loads(schema), "x-guidance": {"whitespace_flexible": False}})


def check_schema(schema: str) -> None:
    """Check what can be checked without an engine.

    Raises:
        UsageError: the text is no JSON object, nested too deeply, or asks for an answer that no context holds.
    """
    try:
        value = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"JSON schema: expected JSON, got {error}") from error
    if not isinstance(value, (dict, bool)):
        raise UsageError(f"JSON schema: expected an object, got {type(value).__name__}")
    _check_lengths(value, "", 0)


def _check_lengths(value: Any, path: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise UsageError(f"JSON schema: expected at most {_DEEPEST} levels, got more at {path[:_REASON_CHARACTERS]}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_lengths(item, f"{path}/{index}", depth + 1)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in _LEAST_LENGTHS and isinstance(item, (int, float)) and item > _LONGEST:
            raise UsageError(f"JSON schema: {path}/{key}: expected at most {_LONGEST}, got {item}")
        _check_lengths(item, f"{path}/{key}", depth + 1)


@lru_cache(maxsize=32)
def _tried(engine: EngineName, grammar: str | None, schema: str | None) -> str | None:
    what = "grammar" if schema is None else "JSON schema"
    request = {"engine": engine, "grammar": grammar, "schema": schema, "library": str(llama_library_path(engine))}
    try:
        done = subprocess.run(
            [sys.executable, "-X", "utf8", str(Path(__file__).with_name("worker.py"))],
            input=json.dumps(request).encode(), capture_output=True, check=False, timeout=_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UsageError(f"{what}: {engine} needs more than {_SECONDS:.0f} s for it: too many repetitions") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise UsageError(f"{what}: it is nested too deeply or repeats too often for {engine}") from None
    if "error" in answer:
        kind = UsageError if grammar is None or schema is None else UnsupportedSchemaError
        reason = _one_line(answer["error"] or _first_line(done.stderr.decode("utf-8", "replace")))
        raise kind(f"{what}: {engine} cannot follow it: {reason or 'no reason given'}")
    found: str | None = answer.get("grammar")
    return found


def _first_line(text: str) -> str:
    """The line that says what is wrong; after it llama.cpp prints the grammar itself."""
    lines = [line.strip().removeprefix("parse: ") for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line or "grammar" in line), lines[0] if lines else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_REASON_CHARACTERS]
