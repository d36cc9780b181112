"""Calibration statistics on disk: one safetensors file, and the folder of a run that may be resumed.

It knows the layout of these files and nothing of how statistics are measured.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edgepack.errors import CalibrationError
from edgepack.files.output import atomic_output
from edgepack.quant.calibration.hessian_files import HessianFile
from edgepack.quant.calibration.statistics import LinearStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.quant.calibration.hessian_files import HessianFolder

FORMAT = "edgepack-calibration-1"
_FIELDS = ("mean_abs", "mean_square", "hessian")


def save_statistics(path: Path, statistics: Mapping[str, LinearStatistics], about: Mapping[str, str]) -> None:
    """Write `statistics` to `path`, whole or not at all.

    Args:
        path: a `.safetensors` file; tensors are called `LAYER.mean_abs`, `LAYER.mean_square`, `LAYER.hessian`.
        statistics: checkpoint name of a weight → the moments of its inputs. A Hessian that lies in a file stays there;
            it is to lie beside `path`.
        about: settings of the run, kept as metadata.
    """
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, values in statistics.items():
        for field in _FIELDS:
            if (array := getattr(values, field)) is not None:
                arrays[f"{name}.{field}"] = array
    counts = {name: values.count for name, values in statistics.items()}
    files = {name: [s.path.name, s.columns, s.digest] for name, v in statistics.items() if (s := v.stored) is not None}
    _write(path, arrays, {"format": FORMAT, "counts": json.dumps(counts), "files": json.dumps(files), **about})


def load_statistics(path: Path) -> tuple[dict[str, LinearStatistics], dict[str, str]]:
    """Statistics and settings from a file of `save_statistics`.

    Raises:
        CalibrationError: not such a file.
    """
    arrays, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        raise CalibrationError(f"{path}: expected format '{FORMAT}', got '{metadata.get('format')}'")
    statistics, files = {}, json.loads(metadata.get("files", "{}"))
    for name, count in json.loads(metadata["counts"]).items():
        mean_abs, mean_square = arrays[f"{name}.mean_abs"], arrays[f"{name}.mean_square"]
        stored = _reopened(path.parent, *files[name]) if name in files else None
        statistics[name] = LinearStatistics(count, mean_abs, mean_square, arrays.get(f"{name}.hessian"), stored)
    return statistics, metadata


def _reopened(folder: Path, name: str, columns: int, digest: str) -> HessianFile:
    """A Hessian in a file that an earlier run has written whole; raises CalibrationError where it is gone."""
    path = folder / Path(name).name
    if not path.is_file():
        raise CalibrationError(f"{path}: expected a Hessian, got no file")
    return HessianFile(path, columns, digest)


def _write(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    raw = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(metadata))
    with atomic_output(path, len(raw)) as stream:
        stream.write(raw)


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CalibrationError(f"{path}: cannot be read as calibration statistics: {error}") from error


class ResumeFolder:
    """What an interrupted calibration leaves: statistics of each finished block and the last activations.

    Args:
        folder: made when needed; belongs to one run.
        key: identifies model, tokens and settings; leftovers of another run are discarded.
        hessians: where Hessians lie, in `folder` too; None for memory.
    """

    def __init__(self, folder: Path, key: str, hessians: HessianFolder | None = None) -> None:
        self.folder, self.key, self._hessians = folder, key, hessians

    def load(self) -> tuple[int, dict[str, LinearStatistics], NDArray[np.float32] | None]:
        """(blocks done, their statistics, activations after them); (0, {}, None) for a fresh start."""
        try:
            arrays, metadata = _read(self.folder / "activations.safetensors")
            if metadata.get("key") != self.key:
                return 0, {}, None
            done, statistics = int(metadata["blocks"]), {}
            for index in range(done):
                statistics.update(load_statistics(self._block_path(index))[0])
        except (CalibrationError, KeyError, ValueError):
            return 0, {}, None
        return done, statistics, arrays["activations"]

    def save(
        self, index: int, statistics: Mapping[str, LinearStatistics], activations: NDArray[np.float32]
    ) -> Mapping[str, LinearStatistics]:
        """Record that block `index` is done; `activations` are its outputs. Returns what memory is to hold."""
        self.folder.mkdir(parents=True, exist_ok=True)
        statistics = self.put(self._block_path(index).stem, statistics)
        save_statistics(self._block_path(index), statistics, {"key": self.key})
        about = {"key": self.key, "blocks": str(index + 1)}
        _write(self.folder / "activations.safetensors", {"activations": activations}, about)
        return statistics

    def put(self, group: str, statistics: Mapping[str, LinearStatistics]) -> Mapping[str, LinearStatistics]:
        """The statistics as memory is to hold them: with their Hessians in files where those have a folder."""
        return statistics if self._hessians is None else self._hessians.put(group, statistics)

    def remove(self) -> None:
        """The run is whole: nothing is left to resume."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _block_path(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"
