"""The scratch folder of a wire export: what an interrupted one left in it is gone on with, or removed.

What lies in it is `makers.wire`'s, `quant.calibration`'s and `export.wire`'s.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgepack.files.folders import make_scratch
from edgepack.files.output import atomic_output

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint

_OWNER, _TRIED = "run.json", "tried.json"


@dataclass(frozen=True)
class Tried:
    """One scale that an interrupted run had tried.

    Attributes:
        scale: the scalar.
        archive_bytes: of its archive.
        gguf_bytes: of its GGUF.
        trellises: what was decided on trellises and folds.
        hosts: what was decided on hosts, where a budget of memory did.
    """

    scale: float
    archive_bytes: int
    gguf_bytes: int
    trellises: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)


class WireScratch:
    """A folder beside the output, named after it.

    Args:
        output: the file that will be written.
        about: all that the run's results depend on, beside the weights.
        checkpoint: the weights.
        resume: whether to go on with what an interrupted run of the same left; else it is removed.
    """

    def __init__(self, output: Path, about: tuple[object, ...], checkpoint: Checkpoint, *, resume: bool) -> None:
        self.folder = output.parent / f".edgepack-wire-{output.name}"
        own_scratch(self.folder, output, run_digest(about, checkpoint), resume=resume)
        path = self.folder / _TRIED
        self.tried = [Tried(**item) for item in json.loads(path.read_text())] if path.is_file() else []

    def note(self, tried: Tried) -> None:
        """Keep what a try gave."""
        self.tried = [*(item for item in self.tried if item.scale != tried.scale), tried]
        with atomic_output(self.folder / _TRIED) as stream:
            stream.write(json.dumps([asdict(item) for item in self.tried]).encode())

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def own_scratch(folder: Path, output: Path, digest: str, *, resume: bool) -> None:
    """Make `folder` the scratch of the run with this digest; what lies in it stays where that run is resumed.

    Args:
        folder: beside the output.
        output: for messages.
        digest: of all that the run's results depend on.
        resume: whether to go on with what an interrupted run of the same left; else it is removed.
    """
    owner = folder / _OWNER
    if not resume or not owner.is_file() or owner.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
    make_scratch(folder, output)
    with atomic_output(owner) as stream:
        stream.write(digest.encode())


def curvature_place(
    shared: Path | None, scratch: Path, tokens: NDArray[np.int64], checkpoint: Checkpoint, output: Path
) -> Path:
    """Where curvature lies: the run's scratch, or where other runs of the same weights and text find it too.

    Args:
        shared: a folder for what runs share, or None.
        scratch: of this run.
        tokens: that curvature is measured on.
        checkpoint: the weights, passes included.
        output: for messages.
    """
    if shared is None:
        return scratch
    place = shared / f"curvature-{run_digest((tokens,), checkpoint)[:32]}"
    make_scratch(place, output)
    return place


def run_digest(about: tuple[object, ...], checkpoint: Checkpoint) -> str:
    """Of what a run depends on; of the weights the first row of every tensor."""
    digest = hashlib.sha256()
    for item in about:
        digest.update(item.tobytes() if isinstance(item, np.ndarray) else repr(item).encode())
    for name, spec in checkpoint.tensors.specs.items():
        digest.update(repr((name, spec.shape, spec.dtype)).encode())
        if spec.rows:
            digest.update(checkpoint.tensors.read_rows(name, 0, 1).tobytes())
    return digest.hexdigest()
