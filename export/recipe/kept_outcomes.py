"""A finished pass on disk: what it changed, measured and left to later stages, so that a second run need not do it.

Arrays are kept as they are and read back where they lie, so that the bytes of a file made of them are those of a run
that did everything itself. When an outcome is still good is `export.recipe.pass_stages`'.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import UsageError
from edgepack.file_digest import file_sha256
from edgepack.files.output import atomic_output
from edgepack.model import TensorSpec, read_tensor
from edgepack.quant.calibration.statistics import LinearStatistics
from edgepack.quant.passes.array_folder import ArrayFolder
from edgepack.quant.passes.coded_rows import CodedRows
from edgepack.quant.passes.run import PassOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint, TensorSource

_INDEX, _ARRAYS, _WEIGHTS, _CODED = "outcome.json", "arrays.npz", "weights", "coded-rows"
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class KeptTensors:
    """The tensors that a pass left: those it changed from its folder, the others from the model below.

    Attributes:
        base: what the pass was given.
        kept: the changed ones.
        layout: every tensor, in the order and with the types that the pass gave them.
    """

    base: TensorSource
    kept: ArrayFolder
    layout: Mapping[str, TensorSpec]

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """As `TensorSource.specs`."""
        return self.layout

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        return self.kept.rows(name, start, stop) if name in self.kept else self.base.read_rows(name, start, stop)


class KeptOutcome:
    """The place of one pass's outcome.

    Args:
        folder: of this pass with these inputs alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def work(self) -> Path:
        """Scratch of the pass while it runs; a killed run goes on in it."""
        return self.folder / "work"

    def read(self, before: Checkpoint) -> PassOutcome | None:
        """What a finished pass gave; None where it never finished or a file is not what it was.

        Args:
            before: what the pass was given.
        """
        try:
            index = json.loads((self.folder / _INDEX).read_bytes())
            if any(file_sha256(self.folder / name) != digest for name, digest in index["files"].items()):
                return None
            coded = None if index["coded"] is None else CodedRows.reopen(self.folder / _CODED, index["coded"])
        except (OSError, UsageError, ValueError, KeyError, TypeError, AttributeError):
            return None
        kept = ArrayFolder(self.folder / _WEIGHTS)
        kept.reopen([(name, file) for name, file in index["weights"]])
        layout = {row["name"]: TensorSpec(row["name"], tuple(row["shape"]), row["dtype"]) for row in index["tensors"]}
        checkpoint = replace(before, config=index["config"], tensors=KeptTensors(before.tensors, kept, layout))
        low_rank, measured = self._arrays(index)
        return PassOutcome(checkpoint, index["figures"], tuple(index["notes"]), coded, low_rank, measured)

    def _arrays(self, index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, LinearStatistics] | None]:
        """Factors apart, moments."""
        if _ARRAYS not in index["files"]:
            return {}, None
        with np.load(self.folder / _ARRAYS, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        low_rank = {
            name: (found[f"left.{number}"], found[f"right.{number}"]) for number, name in enumerate(index["low_rank"])
        }
        counts, measured = index["measured"], None
        if counts is not None:
            measured = {
                name: LinearStatistics(count, found[f"abs.{number}"], found[f"square.{number}"])
                for number, (name, count) in enumerate(counts)
            }
        return low_rank, measured

    def keep(self, outcome: PassOutcome, before: Checkpoint) -> PassOutcome:
        """Write what a pass gave, and remove its scratch; gives the outcome as `read` does.

        Args:
            outcome: of the pass.
            before: what it was given: tensors that are equal there are not written again.
        """
        kept = ArrayFolder(self.folder / _WEIGHTS)
        shutil.rmtree(self.folder / _WEIGHTS, ignore_errors=True)
        specs = outcome.checkpoint.tensors.specs
        for name, spec in specs.items():
            if not _equal(outcome.checkpoint.tensors, before.tensors, name):
                known = before.tensors.specs.get(name, spec)
                kept.put(name, read_tensor(outcome.checkpoint.tensors, name), known.dtype)
        shutil.rmtree(self.folder / _CODED, ignore_errors=True)
        coded = None if outcome.coded is None else outcome.coded.copy_to(self.folder / _CODED)
        arrays: dict[str, NDArray[Any]] = {}
        for number, (left, right) in enumerate(outcome.low_rank.values()):
            arrays |= {f"left.{number}": left, f"right.{number}": right}
        measured = outcome.measured
        for number, moments in enumerate(() if measured is None else measured.values()):
            arrays |= {f"abs.{number}": moments.mean_abs, f"square.{number}": moments.mean_square}
        if arrays:
            np.savez(self.folder / _ARRAYS, allow_pickle=False, **arrays)
        names = [f"{_WEIGHTS}/{file}" for _name, file in kept.files] + ([_ARRAYS] if arrays else [])
        names += [] if coded is None else [f"{_CODED}/{path.name}" for path in coded.files]
        index = {
            "figures": dict(outcome.figures), "notes": list(outcome.notes), "weights": kept.files,
            "config": dict(outcome.checkpoint.config), "tensors": [asdict(spec) for spec in specs.values()],
            "measured": None if measured is None else [(name, each.count) for name, each in measured.items()],
            "low_rank": list(outcome.low_rank), "coded": None if coded is None else coded.index(),
            "files": {name: file_sha256(self.folder / name) for name in names},
        }  # fmt: skip
        with atomic_output(self.folder / _INDEX) as stream:
            stream.write(json.dumps(index).encode())
        shutil.rmtree(self.work, ignore_errors=True)
        read = self.read(before)
        assert read is not None, "what was just written is whole"
        return read


def _equal(after: TensorSource, before: TensorSource, name: str) -> bool:
    """Whether a tensor is what it was, bit for bit."""
    spec, known = after.specs[name], before.specs.get(name)
    if known is None or known.shape != spec.shape:
        return False
    step = max(1, _PIECE_BYTES // (4 * spec.columns))
    for start in range(0, spec.rows, step):
        stop = min(start + step, spec.rows)
        if after.read_rows(name, start, stop).tobytes() != before.read_rows(name, start, stop).tobytes():
            return False
    return True
