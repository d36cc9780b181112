"""Curvature and roundings that end early go on at the last finished block, with the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from wire_models import write_small_llama  # noqa: E402

from edgepack.errors import UsageError  # noqa: E402
from edgepack.export.checkpoint import open_checkpoint  # noqa: E402
from edgepack.export.wire.layer_rounding import LayerRounding  # noqa: E402
from edgepack.export.wire.plan import WireModel, WireSettings  # noqa: E402
from edgepack.pipeline.goals.scalar import scale_to_size  # noqa: E402
from edgepack.pipeline.makers.wire_run import Calibration, WireRun  # noqa: E402
from edgepack.quant.calibration.blocks import BlockwiseModel  # noqa: E402
from edgepack.quant.calibration.curvature import measure  # noqa: E402
from edgepack.quant.calibration.curvature_store import CurvatureStore  # noqa: E402
from edgepack.quant.codecs.ggml.host_grids import HOSTS  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = WireSettings(HOSTS["q8"])


class KilledError(BaseException):
    """Stands for a signal: no handler of errors sees it."""


class Fuse:
    """Calls through, and ends the run at the `blow`th call."""

    def __init__(self, function, blow: int) -> None:
        self.function, self.blow, self.calls = function, blow, 0

    def __call__(self, *arguments, **keywords):
        self.calls += 1
        if self.calls == self.blow:
            raise KilledError
        return self.function(*arguments, **keywords)

    def __get__(self, instance, _owner=None):
        return lambda *arguments, **keywords: self(instance, *arguments, **keywords)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("resume") / "small", num_hidden_layers=3)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, (18, 32))


def contents(store: CurvatureStore) -> dict[str, bytes]:
    names = [name for path in sorted(store.folder.glob("*.npz")) for name in np.load(path)["names"]]
    return {str(n): store.inputs(str(n)).numpy().tobytes() + store.outputs(str(n)).numpy().tobytes() for n in names}


@pytest.fixture(scope="module")
def whole(model: Path, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> CurvatureStore:
    folder = tmp_path_factory.mktemp("whole")
    store = CurvatureStore(folder / "curvature")
    store.fill(measure(open_checkpoint(model), tokens, folder / "entering"))
    return store


@pytest.mark.parametrize("blow", range(1, 7))
def test_a_curvature_killed_in_any_block_goes_on_with_the_same_bytes(
    blow: int, model: Path, tokens: np.ndarray, whole: CurvatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = Fuse(BlockwiseModel.block, blow)  # three blocks forward, three back
    monkeypatch.setattr(BlockwiseModel, "block", fuse)
    with pytest.raises(KilledError):
        CurvatureStore(tmp_path / "c").fill(measure(open_checkpoint(model), tokens, tmp_path / "entering"))
    monkeypatch.undo()
    store = CurvatureStore(tmp_path / "c")
    assert not store.complete
    counted = Fuse(BlockwiseModel.block, 0)
    monkeypatch.setattr(BlockwiseModel, "block", counted)
    store.fill(measure(open_checkpoint(model), tokens, tmp_path / "entering"))
    assert counted.calls <= 6 - blow + 2  # at most the block in hand is repeated
    assert contents(store) == contents(whole)
    assert CurvatureStore(tmp_path / "c").complete


def test_what_another_text_left_is_not_used(
    model: Path, tokens: np.ndarray, whole: CurvatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockwiseModel, "block", Fuse(BlockwiseModel.block, 5))
    with pytest.raises(KilledError):
        CurvatureStore(tmp_path / "c").fill(measure(open_checkpoint(model), tokens[::-1].copy(), tmp_path / "e"))
    monkeypatch.undo()
    store = CurvatureStore(tmp_path / "other")
    store.fill(measure(open_checkpoint(model), tokens, tmp_path / "e"))
    assert contents(store) == contents(whole)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_rounding_killed_between_layers_goes_on_with_the_same_bytes(
    threads: int, model: Path, whole: CurvatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(count: int) -> WireModel:
        return WireModel(open_checkpoint(model), whole, SETTINGS, np.zeros((1, 1), np.int64), threads=count)

    expected = opened(1)
    scale = (24 * 1e-2 / expected.weights) ** 0.5
    first = expected.round(scale, tmp_path / "whole")
    monkeypatch.setattr(LayerRounding, "round", Fuse(LayerRounding.round, 3))
    with pytest.raises(KilledError):
        opened(threads).round(scale, tmp_path / "killed")
    monkeypatch.undo()
    counted = Fuse(LayerRounding.round, 0)
    monkeypatch.setattr(LayerRounding, "round", counted)
    second = opened(threads).round(scale, tmp_path / "killed")
    assert counted.calls == 2  # of the table and three blocks two were whole
    for one, other in zip(first.plan.tensors, second.plan.tensors, strict=True):
        assert np.array_equal(one.rows.read(0, one.info.rows), other.rows.read(0, other.info.rows))
    assert (first.losses, first.raised_rows) == (second.losses, second.raised_rows)


def test_layers_of_another_scale_are_not_taken(model: Path, whole: CurvatureStore, tmp_path: Path) -> None:
    wire = WireModel(open_checkpoint(model), whole, SETTINGS, np.zeros((1, 1), np.int64), threads=1)
    fine = wire.round((24 * 1e-4 / wire.weights) ** 0.5, tmp_path).loss
    assert wire.round((24 * 1e-2 / wire.weights) ** 0.5, tmp_path).loss > 10 * fine


def killed_search(run: WireRun, wanted: int, blow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerRounding, "round", Fuse(LayerRounding.round, blow))
    with pytest.raises(KilledError), run:
        scale_to_size(run, wanted)
    monkeypatch.undo()


def test_an_export_killed_in_its_second_try_goes_on_there_and_gives_the_same_archive(
    model: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(name: str, resume: bool = False) -> WireRun:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        calibration = Calibration(tokens, "0" * 64)
        checkpoint = open_checkpoint(model)
        return WireRun(checkpoint, folder / "out.edgepack", SETTINGS, calibration, threads=1, resume=resume)

    with opened("whole") as run:
        wanted = run.attempt(run.scale_of(1e-2)).archive_bytes * 9 // 10
        run.trials.clear()
        expected = scale_to_size(run, wanted)
        tries, archive = len(run.trials), run.archive.read_bytes()
    assert not list((tmp_path / "whole").iterdir())
    assert tries > 1
    killed_search(opened("killed"), wanted, 6, monkeypatch)  # four layers a try: the second layer of the second try
    counted = Fuse(LayerRounding.round, 0)
    monkeypatch.setattr(LayerRounding, "round", counted)
    with opened("killed", resume=True) as run:
        found = scale_to_size(run, wanted)
        assert (found.scale, found.archive_bytes) == (expected.scale, expected.archive_bytes)
        assert run.archive.read_bytes() == archive
    assert counted.calls < 4 * tries
    monkeypatch.undo()
    assert not list((tmp_path / "killed").iterdir())


def test_without_resume_an_interrupted_run_is_removed_and_errors_leave_nothing(
    model: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration, output = Calibration(tokens, "0" * 64), tmp_path / "out.edgepack"
    killed_search(WireRun(open_checkpoint(model), output, SETTINGS, calibration), 10**5, 2, monkeypatch)
    (left,) = tmp_path.iterdir()
    mark = left / "mark"
    mark.touch()
    with WireRun(open_checkpoint(model), output, SETTINGS, calibration) as run:
        assert not mark.exists()
        with pytest.raises(UsageError):
            scale_to_size(run, 1000)
    assert not list(tmp_path.iterdir())
