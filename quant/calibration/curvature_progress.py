"""How far a measurement of curvature has come, in a folder: an interrupted one goes on at the last finished block.

Files appear whole or not at all, and go as they have been used. What they mean is left to `curvature`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.files.arrays import new_array

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_OWNER = "run.sha256"


class CurvatureProgress:
    """Activations, moments and gradients of one run.

    Args:
        folder: of this run alone; what another run left there is removed.
        about: what the run depends on: arrays, and values whose text says all.
    """

    def __init__(self, folder: Path, about: tuple[Any, ...]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        parts = (item.tobytes() if isinstance(item, np.ndarray) else repr(item).encode() for item in about)
        digest, owner = hashlib.sha256(b"".join(parts)).hexdigest(), folder / _OWNER
        if not owner.is_file() or owner.read_text() != digest:
            self.clear()
            owner.write_text(digest)

    def clear(self) -> None:
        """Remove every file of a run."""
        for path in (*self._folder.glob("*.np[yz]"), self._folder / _OWNER):
            path.unlink(missing_ok=True)

    @property
    def forward(self) -> int:
        """The first block that the forward pass has to run (again): its inputs are kept unless it is 0."""
        index = 0
        while self._path("entering", index).is_file() and self._path("moments", index).is_file():
            index += 1
        return index if self._path("entering", index).is_file() else max(0, index - 1)

    @property
    def backward(self) -> int | None:
        """How many blocks the backward pass has still to visit; None before it began."""
        found = [int(path.stem.rpartition("-")[2]) for path in self._folder.glob("gradient-*.npy")]
        return min(found) if found else None

    def enter(self, index: int, hidden: torch.Tensor) -> None:
        """Keep what enters a block, float32 [sequences, length, width]."""
        self._save("entering", index, hidden.numpy())

    def entering(self, index: int) -> NDArray[np.float32]:
        """What enters a block, read from disk as it is used."""
        return self._load("entering", index)

    def moments(self, index: int, hessians: Mapping[str, NDArray[np.float32] | None]) -> None:
        """Keep H of a block's matrices; those that are one array are kept once."""
        arrays: dict[str, Any] = {}
        for name, hessian in hessians.items():
            assert hessian is not None
            first = next((known for known, other in arrays.items() if other is hessian), name)
            arrays[name] = hessian if first == name else np.array(first)
        path = self._folder / f"partial-{index}.npz"
        np.savez(path, **arrays)
        path.replace(self._folder / f"moments-{index}.npz")

    def kept_moments(self, index: int) -> dict[str, torch.Tensor]:
        """H of a block's matrices by name; one tensor where it was one array."""
        with np.load(self._folder / f"moments-{index}.npz") as arrays:
            found = {name: arrays[name] for name in arrays.files}
        owners = {name: str(array) if array.ndim == 0 else name for name, array in found.items()}
        tensors = {name: torch.from_numpy(array) for name, array in found.items() if array.ndim}
        return {name: tensors[owner] for name, owner in owners.items()}

    def head(
        self, inputs: NDArray[np.float32] | None, outputs: torch.Tensor, blocks: int, gradient: torch.Tensor
    ) -> None:
        """Keep the head's curvature and the gradient at the last block's outputs: the backward pass begins."""
        assert inputs is not None
        path = self._folder / "partial-head.npz"
        np.savez(path, inputs=inputs, outputs=outputs.numpy())
        path.replace(self._folder / "head.npz")
        self._save("gradient", blocks, gradient.contiguous().numpy())

    def kept_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """H and G's diagonal of the head."""
        with np.load(self._folder / "head.npz") as arrays:
            return torch.from_numpy(arrays["inputs"]), torch.from_numpy(arrays["outputs"])

    def gradient(self, index: int) -> NDArray[np.float32]:
        """The gradient at what enters block `index` [sequences taken back, length, width]."""
        return self._load("gradient", index)

    def went_back(self, index: int, gradient: torch.Tensor) -> None:
        """Block `index` is done: keep the gradient at its inputs; what only it needed goes."""
        self._save("gradient", index, gradient.contiguous().numpy())
        for path in (self._path("gradient", index + 1), self._path("entering", index), self._path("moments", index)):
            path.unlink(missing_ok=True)

    def filling(self, shape: tuple[int, ...], number: int) -> NDArray[np.float32]:
        """A new array on disk, float32, to be filled piece by piece; a run that ends early leaves nothing of it."""
        made: NDArray[np.float32] = new_array(self._folder / f"filling-{number}.npy", np.float32, shape)
        return made

    def filled(self, number: int) -> None:
        """A filled array is what enters block `number`."""
        (self._folder / f"filling-{number}.npy").replace(self._path("entering", number))

    def drop_filling(self, number: int) -> None:
        """A filled array is not needed any more."""
        (self._folder / f"filling-{number}.npy").unlink(missing_ok=True)

    def _path(self, what: str, index: int) -> Path:
        return self._folder / f"{what}-{index}.{'npz' if what == 'moments' else 'npy'}"

    def _load(self, what: str, index: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.load(self._path(what, index), mmap_mode="r")
        return found

    def _save(self, what: str, index: int, array: NDArray[np.float32]) -> None:
        partial = self._folder / "partial.npy"
        np.save(partial, array)
        partial.replace(self._path(what, index))
