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


class CurvatureStore:
    """Checkpoint name → curvature, read from disk when it is asked for.

    Args:
        folder: a folder of this store alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, tuple[Path, int, int]] = {}

    def fill(self, parts: Iterable[Mapping[str, Curvature]]) -> None:
        """Write every part; matrices that share their inputs share one copy."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(parts):
            path = self.folder / f"{number}.npz"
            inputs: list[Any] = []
            arrays: dict[str, Any] = {}
            for index, (name, curvature) in enumerate(part.items()):
                equal = (i for i, known in enumerate(inputs) if torch.equal(known, curvature.inputs))
                shared = next(equal, len(inputs))
                if shared == len(inputs):
                    inputs.append(curvature.inputs)
                    arrays[f"inputs{shared}"] = curvature.inputs.numpy()
                    arrays[f"squares{shared}"] = curvature.inputs.diagonal().numpy()
                arrays[f"outputs{index}"] = curvature.outputs.numpy()
                self._files[name] = (path, shared, index)
            np.savez(path, **arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def inputs(self, name: str) -> torch.Tensor:
        """H of matrix `name`, float32 [in, in]."""
        path, shared, _ = self._files[name]
        with np.load(path) as arrays:
            return torch.from_numpy(arrays[f"inputs{shared}"])

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
