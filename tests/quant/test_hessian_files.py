"""Hessians in files are those in memory: read when they are asked for, shared as they were, resumed after a kill."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepack.errors import CalibrationError, ResourceError
from edgepack.quant.calibration.collect import collect
from edgepack.quant.calibration.hessian_files import HessianFile, HessianFolder
from edgepack.quant.calibration.statistics import LinearStatistics

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def moments(columns: int, seed: int = 0) -> LinearStatistics:
    inputs = np.random.default_rng(seed).standard_normal((columns // 2 + 3, columns)).astype(np.float32)
    hessian = inputs.T @ inputs / len(inputs)
    return LinearStatistics(len(inputs), np.abs(inputs).mean(0), np.diagonal(hessian).copy(), (hessian + hessian.T) / 2)


def stored(found: LinearStatistics) -> HessianFile:
    assert found.stored is not None
    return found.stored


@pytest.mark.parametrize("columns", [1, 7, 255, 256, 257, 700])
def test_a_hessian_reads_as_it_was_written(columns: int, tmp_path: Path) -> None:
    own = moments(columns)
    (kept,) = HessianFolder(tmp_path, 1).put("block", {"q": own}).values()
    assert kept.hessian is None
    np.testing.assert_array_equal(stored(kept).read(), own.hessian)
    order = np.random.default_rng(1).permutation(columns)
    for one, other in ((kept.reordered(order), own.reordered(order)), (kept.reordered(order).reordered(order), None)):
        expected = own.reordered(order).reordered(order) if other is None else other
        np.testing.assert_array_equal(one.read_hessian(), expected.hessian)
        np.testing.assert_array_equal(one.mean_square, expected.mean_square)
    assert kept.reordered(order).stored != stored(kept) or columns == 1
    assert stored(kept.reordered(order)).identity != stored(kept).identity


def test_layers_that_share_an_input_share_a_file_of_half_its_size(tmp_path: Path) -> None:
    shared, other = moments(2048), moments(2048, 1)
    kept = HessianFolder(tmp_path, 1).put("block-00000", {"q": shared, "k": shared, "v": other, "norm": moments(1)})
    assert stored(kept["q"]) is stored(kept["k"])
    assert stored(kept["q"]).path != stored(kept["v"]).path
    assert stored(kept["q"]).path.stat().st_size < 0.57 * 4 * 2048**2
    assert stored(kept["q"]).identity != stored(kept["v"]).identity


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    (kept,) = HessianFolder(tmp_path, 1).put("block", {"q": moments(300)}).values()
    path = stored(kept).path
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CalibrationError, match=r"expected rows 256 to 299, file ends before"):
        stored(kept).read()


def test_the_first_block_tells_whether_the_disk_has_room_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=5 * 4 * 256**2 - 1))
    with pytest.raises(ResourceError, match=r"6 blocks need 1\.31 MB more on disk, only 1\.31 MB are free"):
        HessianFolder(tmp_path, 6).put("block", {"q": moments(256)})
    folder = HessianFolder(tmp_path, 5)
    folder.put("block", {"q": moments(256)})
    folder.put("next", {"q": moments(512)})  # what is there is known by then


def test_collected_hessians_in_files_are_those_in_memory_and_a_killed_run_goes_on(
    tiny: Any, tokens: NDArray[np.int64], tmp_path: Path, interrupted_once: Any
) -> None:
    checkpoint, _ = tiny("llama")
    expected = collect(checkpoint, tokens, with_hessian=True).statistics
    visited = interrupted_once()
    with pytest.raises(KeyboardInterrupt):
        collect(checkpoint, tokens, with_hessian=True, keep_in=tmp_path / "kept")
    for _ in range(2):
        found = collect(checkpoint, tokens, with_hessian=True, keep_in=tmp_path / "kept").statistics
        assert found.keys() == expected.keys()
        for name, own in found.items():
            assert own.hessian is None
            np.testing.assert_array_equal(own.read_hessian(), expected[name].hessian)
            np.testing.assert_array_equal(own.mean_square, expected[name].mean_square)
    assert visited == [0, 1, 1, 2]


def test_a_hessian_that_is_gone_is_measured_anew(tiny: Any, tokens: NDArray[np.int64], tmp_path: Path) -> None:
    checkpoint, _ = tiny("llama")
    first = collect(checkpoint, tokens, with_hessian=True, keep_in=tmp_path).statistics
    (tmp_path / "block-00001-0.hessian").unlink()
    second = collect(checkpoint, tokens, with_hessian=True, keep_in=tmp_path).statistics
    for name, own in first.items():
        np.testing.assert_array_equal(own.read_hessian(), second[name].read_hessian())
