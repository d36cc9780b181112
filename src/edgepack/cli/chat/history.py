"""Earlier questions in a file of the user's: a JSON text a line, readable by no other. Editing is `line_editor`'s."""

from __future__ import annotations

import json
import os
from pathlib import Path

_MOST = 1000  # entries; older ones go when the file is read
_MOST_BYTES = 8 << 20


def history_path() -> Path:
    """Where it is kept: `chat-history` in EDGEPACK_STATE, else in the user's folder for state."""
    named = os.environ.get("EDGEPACK_STATE")
    if named:
        return Path(named) / "chat-history"
    import platformdirs

    return platformdirs.user_state_path("edgepack") / "chat-history"


class HistoryFile:
    """Entries, oldest first. A folder that cannot be written keeps nothing, and nobody is bothered."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[str]:
        """The newest entries; a file that has grown is cut to them."""
        try:
            if self._path.stat().st_size > _MOST_BYTES:
                self._path.unlink()
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        entries = [entry for line in lines[-_MOST:] if (entry := _entry(line)) is not None]
        if len(lines) > 2 * _MOST:
            self._write(entries, os.O_TRUNC)
        return entries

    def add(self, text: str) -> None:
        """Append one."""
        self._write([text], os.O_APPEND)

    def _write(self, entries: list[str], how: int) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | how, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(entry) + "\n" for entry in entries)
        except OSError:
            return


def _entry(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, str) else None
