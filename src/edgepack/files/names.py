"""What hidden neighbours of an output are called: what is written meanwhile, what may be continued, and its lock.

All lie in the output's own folder, so on its file system. What they hold is left to the modules that open them.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MAX_NAME_BYTES = 255  # NAME_MAX of every file system in use
_TOKEN_BYTES = 6
_KEPT_BYTES = 120  # of a name that is too long to be followed by a suffix


def hidden_path(path: Path, suffix: str) -> Path:
    """The hidden neighbour `.NAME.SUFFIX`; a name too long for that is cut, and a digest of it stands in its place."""
    name = f".{path.name}.{suffix}"
    if len(name.encode()) > _MAX_NAME_BYTES:
        name = f".{_short(path)}.{suffix}"
    return path.with_name(name)


def _short(path: Path) -> str:
    raw = path.name.encode()
    return f"{raw[:_KEPT_BYTES].decode('utf-8', 'ignore')}-{hashlib.sha256(raw).hexdigest()[:16]}"


def partial_path(path: Path) -> Path:
    """Where what can be continued is written until it is whole."""
    return hidden_path(path, "partial")


def lock_path(path: Path) -> Path:
    """The file whose lock is held by the command that makes `path`."""
    return hidden_path(path, "lock")


def temporary_path(path: Path) -> Path:
    """A new name each time, where what cannot be continued is written until it is whole."""
    return hidden_path(path, f"{secrets.token_hex(_TOKEN_BYTES)}.tmp")


def is_temporary_of(path: Path, name: str) -> bool:
    """Whether `name` is one that `temporary_path(path)` may have given."""
    sample = hidden_path(path, f"{'0' * (2 * _TOKEN_BYTES)}.tmp").name
    begin = re.escape(sample.removesuffix(f"{'0' * (2 * _TOKEN_BYTES)}.tmp"))
    return re.fullmatch(f"{begin}[0-9a-f]{{{2 * _TOKEN_BYTES}}}\\.tmp", name) is not None
