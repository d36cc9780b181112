"""Reads a JSON object from a file that may be absent, hostile or not JSON at all; it knows no keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError
from edgepack.file_kinds import describe, is_pointer

if TYPE_CHECKING:
    from pathlib import Path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: absent, unreadable, not JSON or not an object.
    """
    try:
        raw = path.read_bytes()
        value = json.loads(raw)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file not found") from None
    except (OSError, ValueError, RecursionError) as error:
        got = describe(raw) if isinstance(error, ValueError) and is_pointer(raw) else error
        raise CheckpointError(f"{path}: expected JSON: {got}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
