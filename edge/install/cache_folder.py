"""Where this machine keeps installed models and measurements: EDGEPACK_CACHE, else the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

from edgepack.errors import UsageError


def cache_folder() -> Path:
    """The folder, made where it is absent.

    Raises:
        UsageError: it cannot be made.
    """
    named = os.environ.get("EDGEPACK_CACHE")
    if named:
        folder = Path(named)
    else:
        import platformdirs

        folder = platformdirs.user_cache_path("edgepack")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cache folder '{folder}': cannot be made: {error.strerror} (set EDGEPACK_CACHE)") from error
    return folder
