"""Whether connections are allowed: `fetch` and `update` ask here before they open one, nothing else opens any."""

from __future__ import annotations

import os

from edgepack.errors import UsageError

VARIABLE = "EDGEPACK_OFFLINE"


def require_online(command: str, *, offline: bool) -> None:
    """Refuse where the user forbade connections, by option or by EDGEPACK_OFFLINE (anything but empty and 0).

    Raises:
        UsageError: connections are forbidden.
    """
    if offline or os.environ.get(VARIABLE, "") not in ("", "0"):
        who = "--offline" if offline else f"{VARIABLE}={os.environ[VARIABLE]}"
        raise UsageError(f"{command} would open a connection, and {who} forbids it")
