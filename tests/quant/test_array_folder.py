"""Changed weights on disk: two bytes each where the source's type holds them exactly, and never another value."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepack.errors import CheckpointError
from edgepack.export.weight_files import ShardedTensors
from edgepack.model import OverriddenTensors, TensorSpec
from edgepack.quant.passes.array_folder import ArrayFolder

if TYPE_CHECKING:
    from numpy.typing import NDArray
EXACT = np.array([[0.0, -0.0, 1.0], [-2.5, 2**-14, 96.0]], dtype=np.float32)


@pytest.mark.parametrize(("dtype", "item"), [("bf16", 2), ("f16", 2), ("f32", 4), ("i8", 4)])
def test_exact_weights_take_the_sources_bytes(dtype: str, item: int, tmp_path: Path) -> None:
    folder = ArrayFolder(tmp_path)
    folder.put("a", EXACT, dtype)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 128 + EXACT.size * item
    assert folder["a"].tobytes() == EXACT.tobytes()
    assert folder.rows("a", 1, 2).tobytes() == EXACT[1:].tobytes()


@pytest.mark.parametrize(("dtype", "value"), [("bf16", 1 + 2**-9), ("f16", 1 + 2**-12), ("f16", 1e6), ("f16", 1e-9)])
def test_weights_that_the_type_would_change_keep_four_bytes(dtype: str, value: float, tmp_path: Path) -> None:
    array = np.array([value, 1.0], dtype=np.float32)
    folder = ArrayFolder(tmp_path)
    folder.put("a", array, dtype)
    assert np.array_equal(folder["a"], array)
    assert next(tmp_path.iterdir()).stat().st_size == 128 + 8


def test_vectors_are_one_row(tmp_path: Path) -> None:
    folder = ArrayFolder(tmp_path)
    folder.put("a", np.ones(5, dtype=np.float32), "bf16")
    assert folder.rows("a", 0, 1).shape == (1, 5)


def test_a_models_specs_are_told_without_reading_a_changed_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shape that is asked for goes by here: a read each time was an eighth of a refined export's time."""
    folder = ArrayFolder(tmp_path)
    folder.put("a", EXACT, "bf16")
    base = ShardedTensors({})
    base.__dict__["specs"] = {"a": TensorSpec("a", (2, 3), "bf16"), "b": TensorSpec("b", (1,), "bf16")}

    def refuse(_stored: object) -> None:
        raise AssertionError("an array was read")

    monkeypatch.setattr("edgepack.quant.passes.array_folder._widened", refuse)
    specs = OverriddenTensors(base, folder).specs
    assert dict(specs) == {"a": TensorSpec("a", (2, 3), "f32"), "b": TensorSpec("b", (1,), "bf16")}
    assert "c" not in specs
    assert specs.get("c") is None


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_no_file_stays_open_or_mapped(tmp_path: Path) -> None:
    """What is mapped counts as a process's memory: after a walk over a model that would be all of it."""
    folder = ArrayFolder(tmp_path)
    folder.put("a", EXACT, "bf16")
    whole = [folder["a"], folder.rows("a", 0, 1)]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert not [each for each in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(each)]
    whole[0][:] = 7  # the caller's own
    assert folder["a"].tobytes() == EXACT.tobytes()


def test_another_process_s_folder_says_what_it_holds(tmp_path: Path) -> None:
    folder = ArrayFolder(tmp_path)
    folder.put("a", EXACT, "bf16")
    folder.put("b", np.full((2, 2), 1 + 2**-9, dtype=np.float32), "bf16")
    folder.put("a", -EXACT, "bf16")  # of two under one name the last counts
    again: ArrayFolder = pickle.loads(pickle.dumps(folder))
    assert again["a"].tobytes() == (-EXACT).tobytes()
    assert [again.stored_dtype(name) for name in ("a", "b")] == ["bf16", "f32"]
    assert again.files == folder.files


def test_a_matrix_that_lies_by_columns_is_kept_as_it_is(tmp_path: Path) -> None:
    folder = ArrayFolder(tmp_path)
    folder.put("a", np.asfortranarray(EXACT))
    assert folder["a"].tobytes() == EXACT.tobytes()
    assert folder.rows("a", 1, 2).tobytes() == EXACT[1:].tobytes()


@pytest.mark.parametrize("left", [60, 128, 130])
def test_a_file_that_was_cut_is_told_in_a_line(left: int, tmp_path: Path) -> None:
    folder = ArrayFolder(tmp_path)
    folder.put("a", EXACT, "bf16")
    (file,) = tmp_path.iterdir()
    os.truncate(file, left)
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        folder.rows("a", 1, 2)


@pytest.mark.parametrize(
    "array", [np.ones(3), np.ones(3, dtype=object), np.asfortranarray(np.ones((2, 2), np.float32))]
)
def test_a_file_that_no_pass_has_written_is_refused(array: NDArray[Any], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    folder = ArrayFolder(tmp_path)
    folder.reopen([("a", "a.npy")])
    with pytest.raises(CheckpointError, match="expected weights that a pass has kept"):
        folder["a"]
