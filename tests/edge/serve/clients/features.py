"""What each client's script tries: one function a feature, each run by itself; prints one JSON object.

Run: python CLIENT.py BASE_URL MODEL. A feature's value is `ok`, or what went wrong.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

QUESTION = "hi"
TOOL = {
    "name": "paint",
    "description": "paint it",
    "parameters": {"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]},
}
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "large": {"type": "boolean"}},
    "required": ["color", "large"],
    "additionalProperties": False,
}


def run(features: dict[str, Callable[[], None]]) -> None:
    """Try each and print how it went."""
    results = {}
    for name, check in features.items():
        results[name] = _tried(check)
    print("RESULTS " + json.dumps(results))


def _tried(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception:  # noqa: BLE001 - whatever it is, it is told
        return traceback.format_exc(limit=-3)
    return "ok"


def arguments() -> tuple[str, str]:
    """Base URL without `/v1`, and the model's name."""
    return sys.argv[1], sys.argv[2]
