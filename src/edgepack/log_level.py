"""How much other packages log while something of theirs is used. What of it users are told is the callers'."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def log_level(name: str, level: int) -> Iterator[None]:
    """Hold a package's logger at a level of `logging`'s for the length of a `with` block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
