"""Arrays in files have their room before anything is written: a full disk is an error, and not the process' end."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.errors import ResourceError, UsageError
from edgepack.files.arrays import new_array

if TYPE_CHECKING:
    from pathlib import Path

    from small_disk import SmallDisk

posix = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no reservations on this system")


def test_an_array_is_zeros_and_keeps_what_is_written(tmp_path: Path) -> None:
    made = new_array(tmp_path / "a.npy", np.float16, (3, 5))
    assert not made.any()
    made[1] = 7
    del made
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [[0] * 5, [7] * 5, [0] * 5])


@posix
def test_its_room_is_there_before_anything_is_written(tmp_path: Path) -> None:
    new_array(tmp_path / "a.npy", np.float32, (1 << 18,))
    status = (tmp_path / "a.npy").stat()
    assert 512 * status.st_blocks >= status.st_size > 1 << 20


def test_a_disk_without_room_is_an_error_that_leaves_nothing(small_disk: SmallDisk) -> None:
    small_disk.fill(left=100_000)
    with pytest.raises(ResourceError, match=r"a\.npy': the disk became full"):
        new_array(small_disk.path / "a.npy", np.float32, (100_000,))
    assert [path.name for path in small_disk.path.iterdir()] == ["filler"]


@posix
@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, ResourceError), (errno.EIO, ResourceError)])
def test_what_the_system_says_of_a_reservation_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    def refused(*_arguments: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    with pytest.raises(error, match=r"a\.npy"):
        new_array(tmp_path / "a.npy", np.float32, (4,))
    assert not list(tmp_path.iterdir())


@posix
def test_a_system_without_reservations_makes_it_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    assert new_array(tmp_path / "a.npy", np.float32, (4,)).shape == (4,)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        new_array(tmp_path / "absent" / "a.npy", np.float32, (4,))
