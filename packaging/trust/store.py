"""The user's trust store: one small JSON file that lists whose archives this machine takes. EDGEPACK_TRUST names it.

What follows from the list is left to `policy`. A store that cannot be understood is an error, never an empty one:
a field that this version does not know may be what forbids a key.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from edgepack.errors import UsageError
from edgepack.files.output import atomic_output
from edgepack.packaging.trust.signatures import KEY_BYTES

STORE_VERSION = 1
_MAX_STORE_BYTES = 1 << 20
_MAX_KEYS = 1000


@dataclass(frozen=True)
class TrustedKey:
    """One entry of the store; a field more here is a field more in the file.

    Attributes:
        key: the 32 bytes of the public key, hexadecimal.
        name: what people call it.
        added: when it was added, UTC, as ISO 8601; empty for a key that was given on the command line.
        identity: whose it is, as people check it: an address, a page, a repository.
        expires: the last day (UTC, YYYY-MM-DD) on which what it signed is taken; empty for no end.
        revoked: when it was revoked, UTC, as ISO 8601; empty while it counts. A revoked key stays in the store, so that
            it is told apart from a stranger's.
    """

    key: str
    name: str
    added: str = ""
    identity: str = ""
    expires: str = ""
    revoked: str = ""

    @property
    def raw(self) -> bytes:
        """The key's 32 bytes."""
        return bytes.fromhex(self.key)

    def reason_against(self, today: date) -> str:
        """Why the key does not count on a day; empty while it does."""
        if self.revoked:
            return f"key '{self.name}' was revoked on {self.revoked[:10]}"
        if self.expires and today > date.fromisoformat(self.expires):
            return f"key '{self.name}' expired on {self.expires}"
        return ""


def store_path() -> Path:
    """Where the store lies: EDGEPACK_TRUST, else `trust.json` in the user's configuration folder."""
    if named := os.environ.get("EDGEPACK_TRUST"):
        return Path(named)
    import platformdirs

    return platformdirs.user_config_path("edgepack") / "trust.json"


def read_store(path: Path | None = None) -> tuple[TrustedKey, ...]:
    """Every key of the store, in the order in which they were added; none where there is no store.

    Args:
        path: the file; the user's own by default.

    Raises:
        UsageError: the file is no store, made by a newer edgepack, or others may write to it.
    """
    path = store_path() if path is None else path
    try:
        content = _read(path)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UsageError(f"trust store '{path}': cannot be read: {error.strerror}") from None
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):
        raise UsageError(f"trust store '{path}': expected JSON") from None
    if not isinstance(table, dict) or table.get("version") != STORE_VERSION or set(table) != {"version", "keys"}:
        raise UsageError(f"trust store '{path}': expected version {STORE_VERSION} and a list of keys")
    if not isinstance(table["keys"], list) or len(table["keys"]) > _MAX_KEYS:
        raise UsageError(f"trust store '{path}': expected a list of at most {_MAX_KEYS} keys")
    return tuple(_entry(item, f"trust store '{path}': keys[{number}]") for number, item in enumerate(table["keys"]))


def _read(path: Path) -> bytes:
    """The bytes of a regular file of bounded length that only its owner and group may write."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_STORE_BYTES:
            raise UsageError(f"trust store '{path}': expected a regular file of at most {_MAX_STORE_BYTES} bytes")
        if os.name == "posix" and status.st_mode & stat.S_IWOTH:
            raise UsageError(f"trust store '{path}': everybody may write to it; chmod o-w it")
        return stream.read(_MAX_STORE_BYTES)


def _entry(item: Any, where: str) -> TrustedKey:
    known = {field.name for field in fields(TrustedKey)}
    if not isinstance(item, dict) or not {"key", "name"} <= set(item) <= known:
        raise UsageError(f"{where}: expected key and name, and nothing but {', '.join(sorted(known))}")
    if not all(isinstance(value, str) for value in item.values()):
        raise UsageError(f"{where}: expected texts")
    try:
        raw = bytes.fromhex(item["key"])
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise UsageError(f"{where}.key: expected {KEY_BYTES} bytes in hexadecimal")
    if item.get("expires"):
        check_day(item["expires"], f"{where}.expires")
    return TrustedKey(**{**item, "key": raw.hex()})


def check_day(text: str, where: str) -> str:
    """`text` where it is a day as YYYY-MM-DD; raises UsageError."""
    try:
        if date.fromisoformat(text).isoformat() == text:
            return text
    except ValueError:
        pass
    raise UsageError(f"{where}: expected a day as YYYY-MM-DD, got '{text:.40}'")


def write_store(keys: tuple[TrustedKey, ...], path: Path | None = None) -> Path:
    """Write the store, whole or not at all; returns where.

    Raises:
        UsageError: its folder cannot be made.
        ResourceError: the disk is full.
    """
    path = store_path() if path is None else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"trust store '{path}': folder cannot be made: {error.strerror}") from None
    table = {"version": STORE_VERSION, "keys": [asdict(key) for key in keys]}
    with atomic_output(path) as stream:
        stream.write(json.dumps(table, indent=1, ensure_ascii=False).encode() + b"\n")
    return path


def added(keys: tuple[TrustedKey, ...], new: TrustedKey) -> tuple[TrustedKey, ...]:
    """The keys with one more.

    Raises:
        UsageError: the key or its name is there already.
    """
    for old in keys:
        if new.key == old.key or new.name == old.name:
            raise UsageError(f"trust store: '{old.name}' ({old.key[:16]}…) is there already")
    return (*keys, new)


def removed(keys: tuple[TrustedKey, ...], which: str) -> tuple[tuple[TrustedKey, ...], TrustedKey]:
    """The keys without one, and that one; raises as `named_key`."""
    gone = named_key(keys, which)
    return tuple(key for key in keys if key is not gone), gone


def revoked(keys: tuple[TrustedKey, ...], which: str, when: str) -> tuple[tuple[TrustedKey, ...], TrustedKey]:
    """The keys with one revoked, and that one.

    Args:
        keys: of the store.
        which: as in `named_key`.
        when: UTC, ISO 8601.

    Raises:
        UsageError: none or several are meant, or it was revoked before.
    """
    old = named_key(keys, which)
    if old.revoked:
        raise UsageError(f"trust store: '{old.name}' was revoked on {old.revoked[:10]} already")
    new = replace(old, revoked=when)
    return tuple(new if key is old else key for key in keys), new


def named_key(keys: tuple[TrustedKey, ...], which: str) -> TrustedKey:
    """The key that is meant.

    Args:
        keys: of the store.
        which: its name, or the beginning (at least 8 digits) of its key.

    Raises:
        UsageError: none or several are meant.
    """
    text = which.lower()
    found = [key for key in keys if key.name == which or (len(text) >= 8 and key.key.startswith(text))]
    if len(found) != 1:
        names = ", ".join(key.name for key in keys) or "none"
        raise UsageError(f"trust store: '{which}' names {len(found)} keys; there are {names}")
    return found[0]
