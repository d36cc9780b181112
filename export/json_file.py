"""Reads a JSON object from a file that may be absent, hostile or not JSON at all; it knows no keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError
from edgepack.file_kinds import describe, is_pointer
from edgepack.files.source import as_object, parse_json, read_small

if TYPE_CHECKING:
    from pathlib import Path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: absent, unreadable, not JSON or not an object.
    """
    return as_object(_read(path), path, CheckpointError)


def read_json_list(path: Path) -> list[Any]:
    """A JSON list from a file; raises as `read_json`."""
    value = _read(path)
    if not isinstance(value, list):
        raise CheckpointError(f"{path}: expected a JSON list, got {type(value).__name__}")
    return value


def _read(path: Path) -> Any:
    if not path.exists():
        raise CheckpointError(f"{path}: file not found")
    raw = read_small(path, CheckpointError)
    if is_pointer(raw):
        raise CheckpointError(f"{path}: expected JSON: {describe(raw)}")
    return parse_json(raw, path, CheckpointError)
