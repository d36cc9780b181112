"""What a pass has left of its finished blocks, in its scratch folder: a killed run goes on behind the last of them.

Weights, figures and arrays are kept as they are, so that the bytes of a run that went on are those of one that was
not killed. Whose folder it is, and when it goes, is left to the caller of the pass.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.quant.passes.array_folder import ArrayFolder

_INDEX = "blocks.json"


class Walk:
    """A pass on one block after the other, with what it knows of those that are done.

    Attributes:
        kept: names of attributes that JSON holds; a subclass lists its own.
    """

    kept: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Any]:
        """All figures so far."""
        return {name: getattr(self, name) for name in self.kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the figures of the blocks that are done."""
        for name in self.kept:
            setattr(self, name, state[name])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the block that was visited last gave beside its weights and figures."""
        return {}

    def take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `arrays` gave of a block that is done."""


class KeptBlocks:
    """The finished blocks of one pass.

    Args:
        folder: of the pass; the changed weights lie there too.
        resumable: whether anything is kept at all: activations take room and time.
    """

    def __init__(self, folder: Path, *, resumable: bool) -> None:
        self._folder, self._resumable = folder, resumable
        self.done = 0

    def restore(self, changed: ArrayFolder, walk: Walk) -> None:
        """Take up the blocks that are done, if there are any."""
        path = self._folder / _INDEX
        if not self._resumable or not path.is_file():
            return
        index = json.loads(path.read_text(encoding="utf-8"))
        changed.reopen(index["files"])
        walk.restore(index["state"])
        for number in range(index["blocks"]):
            if (arrays := self._folder / f"block-{number}.npz").is_file():
                with np.load(arrays) as kept:
                    walk.take({name: kept[name] for name in kept.files})
        self.done = index["blocks"]

    @property
    def entering(self) -> torch.Tensor | None:
        """What enters the next block, float32 [sequences, length, width]; None at the beginning."""
        path = self._folder / f"entering-{self.done}.npy"
        return torch.from_numpy(np.load(path)) if self.done and path.is_file() else None

    def add(self, changed: ArrayFolder, walk: Walk, outputs: torch.Tensor | None = None) -> None:
        """The next block is done; `outputs` are what enters the one after it, for a pass that reads a text."""
        if not self._resumable:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if arrays := walk.arrays():
            self._write(f"block-{self.done}.npz", lambda path: np.savez(path, allow_pickle=False, **arrays))
        before, self.done = self._folder / f"entering-{self.done}.npy", self.done + 1
        if outputs is not None:
            self._write(f"entering-{self.done}.npy", lambda path: np.save(path, outputs.numpy()))
        index = json.dumps({"blocks": self.done, "files": changed.files, "state": walk.state()})
        self._write(_INDEX, lambda path: path.write_text(index, encoding="utf-8"))
        before.unlink(missing_ok=True)

    def _write(self, name: str, write: Any) -> None:
        partial = self._folder / f"partial-{name}"
        write(partial)
        partial.replace(self._folder / name)
