"""A disk of a few megabytes that is really full when it is full: a mounted tmpfs, where root may mount one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BYTES = 64 << 20


@dataclass(frozen=True)
class SmallDisk:
    """Attributes: path, where it lies."""

    path: Path

    def fill(self, left: int = 0) -> None:
        """Take all room but `left` bytes."""
        free = shutil.disk_usage(self.path).free
        with (self.path / "filler").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, free - left))

    def make_room(self) -> None:
        """Give back what `fill` took."""
        (self.path / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of its own for one test; skips where nobody may mount one."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root on Linux to mount a small disk")
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_BYTES},nosuid,nodev", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
