"""Rules of JSON in GBNF, as data: what `schema_grammar` builds from. A rule names others by their keys here."""

from __future__ import annotations

PRIMITIVES = {
    "space": r'| " " | "\n"{1,2} [ \t]{0,20}',  # bounded: a model may not fill the context with it
    "boolean": '("true" | "false") space',
    "null": '"null" space',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15}) space',
    "natural": '("0" | [1-9] [0-9]{0,15}) space',
    "positive": "[1-9] [0-9]{0,15} space",
    "number": '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})? space',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\"" space',
    "value": "object | array | string | number | boolean | null",
    "pair": 'string ":" space value',
    "object": '"{" space (pair ("," space pair)*)? "}" space',
    "array": '"[" space (value ("," space value)*)? "]" space',
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [1-2] [0-9] | "3" [0-1])',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [+-] [0-9]{2} ":" [0-9]{2})',
    "hex": "[0-9a-fA-F]",
}
FORMATS = {
    "date": "date",
    "time": "time",
    "date-time": 'date "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}
