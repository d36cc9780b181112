"""A JSON schema as GBNF, llama.cpp's grammar notation: what both engines follow alike, whatever their vocabulary.

Whether llama.cpp can follow the grammar is tried by `check`. Rules are those of JSON Schema 2020-12;
properties come in the order in which the schema names them, and others only where it says so, as llama.cpp has it.
"""

from __future__ import annotations

import json
from typing import Any

from edgepack.edge.llama.constraints.json_rules import FORMATS, PRIMITIVES
from edgepack.errors import UsageError

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# Keywords that say nothing of what an answer looks like, or that are read elsewhere.
_ANNOTATIONS = frozenset(
    ["$schema", "$id", "$defs", "$comment", "definitions", "title", "description", "default", "examples", "deprecated",
     "readOnly", "writeOnly", "format", "contentEncoding", "contentMediaType", "strict", "name"]
)  # fmt: skip
_READ = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
}
_MOST_CASES = 256  # integers of a range that are spelled out
_MOST_RULES = 20_000
_DEEPEST = 64
_NOTHING = '""'


class UnsupportedSchemaError(UsageError):
    """The schema says something that GBNF is not made of here."""


def schema_to_gbnf(schema: str) -> str:
    """GBNF whose answers are JSON of `schema`.

    Args:
        schema: text of a JSON schema (an object or a boolean).

    Raises:
        UsageError: it is not one, or nothing can satisfy it; the text begins with the path.
        UnsupportedSchemaError: a keyword that is not followed.
    """
    root = json.loads(schema)
    builder = _Builder(root)
    body = builder.rule_of(root, "", 0)
    rules = {"root": body, **builder.rules}
    return "".join(f"{name} ::= {text}\n" for name, text in rules.items())


class _Builder:
    """Rules so far; a rule's body names others."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._references: dict[str, str] = {}
        self.rules: dict[str, str] = {}

    def _use(self, name: str) -> str:
        """A primitive, with what it names in turn."""
        if name not in self.rules:
            self.rules[name] = PRIMITIVES[name]
            for other in PRIMITIVES:
                if other in _words(PRIMITIVES[name]):
                    self._use(other)
        return name

    def _new(self, body: str) -> str:
        if len(self.rules) > _MOST_RULES:
            raise UsageError(f"JSON schema: expected at most {_MOST_RULES} rules")
        name = f"r{len(self.rules)}"
        self.rules[name] = body
        return name

    def rule_of(self, schema: Any, path: str, depth: int) -> str:
        """An expression for `schema`, which stands at `path`."""
        if depth > _DEEPEST:
            raise UsageError(f"JSON schema: {path}: expected at most {_DEEPEST} levels")
        if schema is True or schema == {}:
            return self._use("value")
        if not isinstance(schema, dict):
            raise UsageError(f"JSON schema: {path or '/'}: expected a schema, got {schema!r:.60}")
        if "$ref" in schema:
            return self._reference(schema, path, depth)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._alternatives(schema, key, path, depth)
        if "allOf" in schema:
            return self.rule_of(self._merged(schema, path), path, depth + 1)
        if "const" in schema:
            return self._literal(schema["const"])
        if "enum" in schema:
            return self._enumeration(schema["enum"], path)
        return self._typed(schema, path, depth)

    def _reference(self, schema: dict[str, Any], path: str, depth: int) -> str:
        target = schema["$ref"]
        if target not in self._references:
            name = f"ref{len(self._references)}"
            self._references[target] = name
            self.rules[name] = ""
            self.rules[name] = self.rule_of(self._pointed(target, path), str(target), depth + 1)
        return self._references[target]

    def _pointed(self, target: Any, path: str) -> Any:
        value = self._root
        if not isinstance(target, str) or not target.startswith("#"):
            raise UnsupportedSchemaError(f"JSON schema: {path}/$ref: expected a place in this schema, got {target!r}")
        for part in target[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            try:
                value = value[int(part)] if isinstance(value, list) else value[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise UsageError(f"JSON schema: {path}/$ref: {target} does not exist") from None
        return value

    def _alternatives(self, schema: dict[str, Any], key: str, path: str, depth: int) -> str:
        cases = schema[key]
        if not isinstance(cases, list) or not cases:
            raise UsageError(f"JSON schema: {path}/{key}: expected a list of schemas, got {cases!r:.60}")
        beside = {name: value for name, value in schema.items() if name != key and name not in _ANNOTATIONS}
        rules = []
        for index, case in enumerate(cases):
            whole = self._joined([beside, self._resolved(case, path)], path) if beside else case
            rules.append(self.rule_of(whole, f"{path}/{key}/{index}", depth + 1))
        return self._new(" | ".join(rules))

    def _merged(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
        """`allOf` and what stands beside it, as one schema."""
        parts = [{name: value for name, value in schema.items() if name != "allOf"}]
        parts += [self._resolved(part, path) for part in schema["allOf"]]
        return self._joined(parts, path)

    def _resolved(self, schema: Any, path: str) -> dict[str, Any]:
        value = schema
        for _ in range(_DEEPEST):
            if not isinstance(value, dict):
                break
            if "$ref" not in value:
                return self._merged(value, path) if "allOf" in value else value
            value = self._pointed(value["$ref"], path)
        raise UnsupportedSchemaError(f"JSON schema: {path}: expected objects to be joined, got {value!r:.60}")

    def _joined(self, parts: list[dict[str, Any]], path: str) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        for part in parts:
            for key, value in part.items():
                if key == "properties" and key in whole:
                    whole[key] = {**whole[key], **value}
                elif key == "required" and key in whole:
                    whole[key] = [*whole[key], *(name for name in value if name not in whole[key])]
                elif key in whole and whole[key] != value and key not in _ANNOTATIONS:
                    raise UnsupportedSchemaError(f"JSON schema: {path}/{key}: two of them cannot be joined")
                else:
                    whole[key] = value
        return whole

    def _literal(self, value: Any) -> str:
        return f"{_quoted(json.dumps(value, ensure_ascii=False))} {self._use('space')}"

    def _enumeration(self, values: Any, path: str) -> str:
        if not isinstance(values, list) or not values:
            raise UsageError(f"JSON schema: {path}/enum: expected a list of values, got {values!r:.60}")
        spelled = " | ".join(_quoted(json.dumps(value, ensure_ascii=False)) for value in values)
        return self._new(f"({spelled}) {self._use('space')}")

    def _typed(self, schema: dict[str, Any], path: str, depth: int) -> str:
        kinds = schema.get("type")
        if kinds is None:
            known = (kind for kind, names in _READ.items() if names & schema.keys() and kind != "integer")
            kinds = next(known, None)
            if kinds is None and (unknown := sorted(schema.keys() - _ANNOTATIONS)):
                raise UnsupportedSchemaError(f"JSON schema: {path}/{unknown[0]}: this keyword is not followed")
            if kinds is None:
                return self._use("value")
        if isinstance(kinds, list) and kinds:
            cases = [self._typed({**schema, "type": kind}, path, depth + 1) for kind in kinds]
            return self._new(" | ".join(cases))
        if kinds not in _TYPES:
            raise UsageError(f"JSON schema: {path}/type: expected one of {', '.join(_TYPES)}, got {kinds!r:.60}")
        self._check_keywords(schema, str(kinds), path)
        if kinds == "object":
            return self._object(schema, path, depth)
        if kinds == "array":
            return self._array(schema, path, depth)
        if kinds == "string":
            return self._string(schema, path)
        return self._integer(schema, path) if kinds == "integer" else self._use(str(kinds))

    @staticmethod
    def _check_keywords(schema: dict[str, Any], kind: str, path: str) -> None:
        """Keywords of other types do not apply; those of this one must be known."""
        known = {"type", *_ANNOTATIONS, *(key for names in _READ.values() for key in names)}
        others = set().union(*(names for other, names in _READ.items() if other != kind)) - _READ.get(kind, set())
        for key in schema:
            if key not in known or (key in others and kind == "number"):
                raise UnsupportedSchemaError(f"JSON schema: {path}/{key}: this keyword is not followed")

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> str:
        properties, more = schema.get("properties", {}), schema.get("additionalProperties")
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise UsageError(f"JSON schema: {path}: expected properties as an object, required as a list")
        if unknown := [name for name in required if name not in properties]:
            raise UnsupportedSchemaError(f"JSON schema: {path}/required: {unknown[0]!r} is no property")
        if not properties and more in (None, True):
            return self._use("object")
        space = self._use("space")
        pairs = [
            f"{_quoted(json.dumps(name, ensure_ascii=False))} {space} \":\" {space} "
            + self.rule_of(value, f"{path}/properties/{name}", depth + 1)
            for name, value in properties.items()
        ]  # fmt: skip
        first, rest = "", ""
        if more not in (None, False):
            value = self.rule_of(more, f"{path}/additionalProperties", depth + 1)
            pair = self._new(f'{self._use("string")} ":" {space} {value}')
            first = self._new(f'({pair} ("," {space} {pair})*)?')
            rest = self._new(f'("," {space} {pair})*')
        for name, pair in reversed(list(zip(properties, pairs, strict=True))):
            here = self._new(pair)
            now, later = f"{here} {rest}", f'"," {space} {here} {rest}'
            if name not in required:
                now, later = f"{now} | {first or _NOTHING}", f"{later} | {rest or _NOTHING}"
            first, rest = self._new(now), self._new(later)
        return self._new(f'"{{" {space} {first} "}}" {space}')

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> str:
        space = self._use("space")
        least, most = _bounds(schema, "minItems", "maxItems", path)
        fixed = schema.get("prefixItems", [])
        if fixed:
            items = [self.rule_of(item, f"{path}/prefixItems/{i}", depth + 1) for i, item in enumerate(fixed)]
            joined = f' "," {space} '.join(items)
            return self._new(f'"[" {space} {joined} "]" {space}')
        item = self.rule_of(schema.get("items", True), f"{path}/items", depth + 1)
        if most == 0:
            return self._new(f'"[" {space} "]" {space}')
        times = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        body = f'{item} ("," {space} {item}){times}'
        return self._new(f'"[" {space} {body if least else f"({body})?"} "]" {space}')

    def _string(self, schema: dict[str, Any], path: str) -> str:
        space, named = self._use("space"), FORMATS.get(str(schema.get("format")))
        if named is not None:
            for name in ("date", "time", "hex"):
                if name in _words(named):
                    self._use(name)
            return self._new(f'"\\"" {named} "\\"" {space}')
        least, most = _bounds(schema, "minLength", "maxLength", path)
        if (least, most) == (0, None):
            return self._use("string")
        return self._new(f'"\\"" {self._use("char")}{{{least},{"" if most is None else most}}} "\\"" {space}')

    def _integer(self, schema: dict[str, Any], path: str) -> str:
        least, most = _integer_bounds(schema)
        if least is None and most is None:
            return self._use("integer")
        if most is None and least in (0, 1):
            return self._use("natural" if least == 0 else "positive")
        if least is None or most is None or not 0 <= most - least < _MOST_CASES:
            raise UnsupportedSchemaError(f"JSON schema: {path}: at most {_MOST_CASES} integers of a range are followed")
        return self._enumeration(list(range(least, most + 1)), path)


def _integer_bounds(schema: dict[str, Any]) -> tuple[int | None, int | None]:
    """The least and the greatest integer, both included; what is no integer is no bound that is followed."""
    least, most = schema.get("minimum"), schema.get("maximum")
    for name, step in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
        bound = schema.get(name)
        if isinstance(bound, int) and not isinstance(bound, bool):
            least, most = (bound + step, most) if step == 1 else (least, bound + step)
        elif bound is not None:
            raise UnsupportedSchemaError(f"JSON schema: {name}: only integers are followed, got {bound!r:.60}")
    if not all(bound is None or isinstance(bound, int) for bound in (least, most)):
        raise UnsupportedSchemaError(
            f"JSON schema: minimum and maximum: only integers are followed, got {least}, {most}"
        )
    return least, most


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() else " " for c in text).split())


def _bounds(schema: dict[str, Any], least: str, most: str, path: str) -> tuple[int, int | None]:
    low, high = schema.get(least, 0), schema.get(most)
    if not isinstance(low, int) or low < 0 or not (high is None or (isinstance(high, int) and high >= low)):
        raise UsageError(f"JSON schema: {path}: expected {least} <= {most}, got {low!r} and {high!r}")
    return low, high


def _quoted(text: str) -> str:
    """A literal of GBNF."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
