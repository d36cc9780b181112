"""Curvatures on disk, one file a block, so that memory holds one block's; where they come from is `curvature`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.quant.calibration.curvature import Curvature

_COMPLETE, _PARTIAL = "complete", "partial"


class CurvatureStore:
    """Checkpoint name → curvature, read from disk when it is asked for.

    Args:
        folder: a folder of this store alone; what an interrupted `fill` left there counts.

    Attributes:
        complete: whether a `fill` has come to its end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, tuple[Path, int, int]] = {}
        self.complete = (folder / _COMPLETE).is_file()
        for path in sorted(folder.glob("*.npz")):
            if not path.name.startswith(_PARTIAL):
                self._enlist(path)

    def _enlist(self, path: Path) -> None:
        with np.load(path) as arrays:
            for index, (name, shared) in enumerate(zip(arrays["names"], arrays["shared"], strict=True)):
                self._files[str(name)] = (path, int(shared), index)

    def fill(self, parts: Iterable[Mapping[str, Curvature]]) -> None:
        """Write every part; matrices that share their inputs share one copy. A part that is there is replaced."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            if part:
                self._enlist(self._write(part))
        (self.folder / _COMPLETE).touch()
        self.complete = True

    def _write(self, part: Mapping[str, Curvature]) -> Path:
        inputs: list[Any] = []
        arrays: dict[str, Any] = {"names": np.array(list(part)), "shared": np.zeros(len(part), np.int64)}
        for index, curvature in enumerate(part.values()):
            equal = (i for i, known in enumerate(inputs) if known is curvature.inputs)
            shared = next(equal, len(inputs))
            if shared == len(inputs):
                inputs.append(curvature.inputs)
                arrays[f"inputs{shared}"] = curvature.inputs.numpy()
                arrays[f"squares{shared}"] = curvature.inputs.diagonal().numpy()
            arrays["shared"][index] = shared
            arrays[f"outputs{index}"] = curvature.outputs.numpy()
            if curvature.joint is not None:
                arrays[f"joint{index}"] = curvature.joint.numpy()
        partial, path = self.folder / f"{_PARTIAL}.npz", self.folder / f"{next(iter(part))}.npz"
        np.savez(partial, **arrays)
        return partial.replace(path)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def inputs(self, name: str) -> torch.Tensor:
        """H of matrix `name`, float32 [in, in]."""
        path, shared, _ = self._files[name]
        with np.load(path) as arrays:
            return torch.from_numpy(arrays[f"inputs{shared}"])

    def inputs_of(self, name: str) -> str:
        """What tells the inputs of matrix `name` from others: matrices that share them have the same."""
        path, shared, _ = self._files[name]
        return f"{path.stem}-{shared}"

    def squares(self, name: str) -> NDArray[np.float64]:
        """H's diagonal, float64 [in]."""
        path, shared, _ = self._files[name]
        with np.load(path) as arrays:
            return np.asarray(arrays[f"squares{shared}"], np.float64)

    def outputs(self, name: str) -> torch.Tensor:
        """Diagonal of G of matrix `name`, float32 [out]."""
        path, _, index = self._files[name]
        with np.load(path) as arrays:
            return torch.from_numpy(arrays[f"outputs{index}"])

    def joint(self, name: str) -> torch.Tensor | None:
        """G of matrix `name`, float32 [out, out], where it was kept."""
        path, _, index = self._files[name]
        with np.load(path) as arrays:
            return torch.from_numpy(arrays[f"joint{index}"]) if f"joint{index}" in arrays else None
