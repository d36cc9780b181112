"""A GGUF, the checkpoint that it was made of, and which of its tensors are tuned; made into a model that learns.

Running it is left to `run`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import UsageError
from edgepack.export.gguf_source import StoredRows
from edgepack.export.tuned_places import tuned_places
from edgepack.quant.tuning.parts import INTEGERS, PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.export.mapped import MappedModel
    from edgepack.export.tuned_places import TunedPlaces
    from edgepack.model import Checkpoint
    from edgepack.quant.tuning.settings import TuningSettings
    from edgepack.quant.tuning.student import Student
    from edgepack.quant.tuning.tensors import TunedTensor


class OpenedFile:
    """A file, the checkpoint that it was made of, and what of it is tuned."""

    def __init__(
        self, path: Path, checkpoint: Checkpoint, original: MappedModel, file: MappedModel, settings: TuningSettings
    ) -> None:
        from edgepack.quant.tuning.tensors import can_tune

        self.path, self.checkpoint, self.original, self.file, self.settings = path, checkpoint, original, file, settings
        wanted = [
            name for name, rows in self._stored().items() if can_tune(rows.stored_type, rows.shape, settings.parts)
        ]
        self.places: TunedPlaces = tuned_places(original, file, checkpoint.tensors, wanted)
        if not self.places.tensors:
            raise UsageError(f"tune: '{path}' has nothing that can be tuned, only {listed(self.left())}")

    def _stored(self) -> dict[str, StoredRows]:
        return {name: rows for name, rows in self.file.tensors.items() if isinstance(rows, StoredRows)}

    def left(self) -> dict[str, int]:
        """Type → tensors of it that are not tuned."""
        stored = self._stored()
        return dict(Counter(rows.stored_type.name for name, rows in stored.items() if name not in self.places.tensors))

    def summary(self) -> str:
        """What is tuned and what is left."""
        left, count = self.left(), len(self.places.tensors)
        parts = ", ".join(part for part in PARTS if part in self.settings.parts)
        rest = f"; left as they are: {listed(left)}" if left else ""
        return f"tune: {parts} of {count} tensors{rest}"

    def student(self) -> Student:
        """The file's model."""
        from edgepack.quant.tuning.student import Student

        kinds = {
            parent: rows.stored_type
            for name, rows in self._stored().items()
            for parent in self.original.tensors[name].origin.names
        }
        weights = replace(self.checkpoint, tensors=self.places.weights)
        tensors = {name: self._tensor(name) for name in self.file.tensors if name in self.places.tensors}
        settings = self.settings
        return Student(
            weights, self.places.places, tensors, kinds, device=settings.device, rounds_inputs=settings.rounds_inputs
        )

    def _tensor(self, name: str) -> TunedTensor:
        import torch

        from edgepack.quant.tuning.tensors import TunedBlocks, TunedVector

        rows = self._stored()[name]
        if len(rows.shape) == 1:
            return TunedVector(rows.stored_type, torch.from_numpy(rows.read(0, 1)[0]))
        count = int(np.prod(rows.shape[:-1]))
        wanted = INTEGERS in self.settings.parts
        exact = torch.from_numpy(self.original.tensors[name].read(0, count)) if wanted else None
        blocks, settings = rows.read_blocks(0, count), self.settings
        return TunedBlocks(rows.stored_type, blocks, exact, settings.parts, settings.moves)


def listed(left: Mapping[str, int]) -> str:
    """`3 tensors of F16, 1 tensors of Q8_0`."""
    return ", ".join(f"{count} tensors of {kind}" for kind, count in sorted(left.items()))
