"""Grammars of schemas: what a model is let say is JSON that the schema allows, whatever the model prefers to say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from edgepack.edge.llama.constraints.schema_grammar import UnsupportedSchemaError, schema_to_gbnf
from edgepack.edge.llama.engines import open_model
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgepack.edge.llama.engine import OpenModel

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["age"],
}
TREE = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                       "required": ["next"]}},
    "$ref": "#/$defs/node",
}  # fmt: skip


def is_person(value: Any) -> bool:
    return set(value) <= {"name", "age", "ok"} and isinstance(value["age"], int) and len(value.get("name", "")) <= 6


def is_tree(value: Any) -> bool:
    return value is None or (set(value) == {"next"} and is_tree(value["next"]))


CASES: list[tuple[Any, Callable[[Any], bool]]] = [
    (PERSON, is_person),
    (TREE, is_tree),
    ({"enum": ["a\"b", "\\", 1, None, "ä\n"]}, lambda v: v in ["a\"b", "\\", 1, None, "ä\n"]),
    ({"const": {"a": [1, "x"]}}, lambda v: v == {"a": [1, "x"]}),
    ({"type": ["boolean", "null"]}, lambda v: v in (True, False, None)),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}, lambda v: 2 <= len(v) <= 3),
    ({"type": "array", "items": {"type": "null"}, "maxItems": 0}, lambda v: v == []),
    ({"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 7}]}, lambda v: v[1:] == [7]),
    ({"type": "string", "minLength": 3, "maxLength": 5}, lambda v: 3 <= len(v) <= 5),
    ({"type": "string", "format": "date"}, lambda v: len(v) == 10 and v[4] == v[7] == "-"),
    ({"type": "integer", "minimum": 0}, lambda v: v >= 0),
    ({"type": "integer", "exclusiveMinimum": 0}, lambda v: v > 0),
    ({"type": "integer", "minimum": 7, "maximum": 9}, lambda v: v in (7, 8, 9)),
    ({"allOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
                {"properties": {"b": {"const": 2}}, "required": ["b"]}]}, lambda v: v == {"a": 1, "b": 2}),
    ({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
      "additionalProperties": {"type": "boolean"}}, lambda v: v["a"] == 1),
    ({"oneOf": [{"const": "left"}, {"type": "object", "properties": {}, "additionalProperties": False}]},
     lambda v: v in ("left", {})),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[OpenModel]:
    with open_model(tiny, RuntimeOptions(n_ctx=512, threads=1, max_outputs=1)) as opened:
        yield opened


@pytest.mark.parametrize(("schema", "holds"), CASES, ids=[json.dumps(case[0])[:40] for case in CASES])
def test_what_comes_is_json_of_the_schema(model: OpenModel, schema: Any, holds: Callable[[Any], bool]) -> None:
    ids, ended = model.tokenize("hello"), 0
    for seed in range(4):
        chosen = SamplingOptions(temperature=1.0, seed=seed, json_schema=json.dumps(schema))
        tokens = [token.text for token in model.generate(ids, chosen, 400)]
        if len(tokens) < 400:  # a random model need not come to an end by itself
            ended += 1
            text = "".join(tokens)
            value = json.loads(text)
            assert "\ufffd" in text or holds(value)  # several such may stand for one character of broken bytes
    assert ended or "additionalProperties" in schema  # names of any length


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "properties": {"a": {"type": "strng"}}}, "/properties/a/type"),
        ({"$ref": "#/$defs/absent"}, "/$ref"),
        ({"enum": []}, "/enum"),
        ({"anyOf": []}, "/anyOf"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems <= maxItems"),
        ([1], "expected a schema"),
        (False, "expected a schema"),
    ],
)
def test_a_schema_that_means_nothing_is_refused_with_its_path(schema: Any, path: str) -> None:
    with pytest.raises(UsageError, match="JSON schema: ") as caught:
        schema_to_gbnf(json.dumps(schema))
    assert path in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "a+"},
        {"type": "number", "multipleOf": 2},
        {"not": {"type": "string"}},
        {"type": "object", "patternProperties": {"a": True}},
        {"$ref": "https://example.com/schema"},
        {"type": "integer", "minimum": 3},
        {"type": "number", "minimum": 3},
    ],
)
def test_a_keyword_that_is_not_followed_is_never_left_out(schema: Any) -> None:
    with pytest.raises(UnsupportedSchemaError):
        schema_to_gbnf(json.dumps(schema))


def test_endless_schemas_end() -> None:
    deep: Any = {"type": "string"}
    for _ in range(300):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="levels"):
        schema_to_gbnf(json.dumps(deep))
    with pytest.raises(UsageError, match="rules"):
        schema_to_gbnf(json.dumps({"anyOf": [{"type": "array", "items": {"enum": [i]}} for i in range(30_000)]}))
