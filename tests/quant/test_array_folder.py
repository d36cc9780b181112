"""Changed weights on disk: two bytes each where the source's type holds them exactly, and never another value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.export.weight_files import ShardedTensors
from edgepack.model import OverriddenTensors, TensorSpec
from edgepack.quant.passes.run import ArrayFolder

if TYPE_CHECKING:
    from pathlib import Path

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

    monkeypatch.setattr("edgepack.quant.passes.run._widened", refuse)
    specs = OverriddenTensors(base, folder).specs
    assert dict(specs) == {"a": TensorSpec("a", (2, 3), "f32"), "b": TensorSpec("b", (1,), "bf16")}
    assert "c" not in specs
    assert specs.get("c") is None
