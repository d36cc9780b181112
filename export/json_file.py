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
    value = _read(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json_list(path: Path) -> list[Any]:
    """A JSON list from a file; raises as `read_json`."""
    value = _read(path)
    if not isinstance(value, list):
        raise CheckpointError(f"{path}: expected a JSON list, got {type(value).__name__}")
    return value


def _read(path: Path) -> Any:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file not found") from None
    except OSError as error:
        raise CheckpointError(f"{path}: expected JSON: {error}") from error
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON: {describe(raw) if is_pointer(raw) else error}") from error
