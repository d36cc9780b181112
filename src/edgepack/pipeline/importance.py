"""An importance matrix of any model, from any text: what `edgepack imatrix` and `export --calibration` share.

A checkpoint is first written as a GGUF of its own precision beside the result, for llama.cpp to run: measured
against torch hooks on the checkpoint itself, that is the faster way (tools/bench_imatrix.py).
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.llama.check import read_runnable
from edgepack.edge.llama.importance_collect import CollectOptions, collect_importance
from edgepack.edge.llama.loads import ensure_loads
from edgepack.errors import EdgepackError
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import string
from edgepack.progress import silent
from edgepack.quant.calibration.importance_file import read_importance, write_importance
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgepack.crew import Crew
    from edgepack.export.mapped import MappedModel
    from edgepack.model import Checkpoint
    from edgepack.pipeline.located import LocatedModel
    from edgepack.progress import Progress
    from edgepack.quant.calibration.importance import ImportanceMatrix

_PRECISIONS = {"bf16": "gguf-bf16", "f16": "gguf-f16"}


@contextmanager
def manned(run: ImportanceRun, cluster: str | None) -> Iterator[ImportanceRun]:
    """The run with the workers of a cluster, where one is named; raises as `cluster.opening.opened_crew`."""
    if cluster is None:
        yield run
        return
    from edgepack.pipeline.cluster.opening import Job, opened_crew

    with opened_crew(Job(cluster, (run.model,), run.beside, tell=run.note)) as crew:
        yield replace(run, crew=crew)


@dataclass(frozen=True)
class ImportanceRun:
    """One run of a text through a model.

    Attributes:
        model: a Hugging Face folder or a GGUF.
        text: a UTF-8 text file.
        beside: the final file: what a run keeps meanwhile lies in the same folder.
        options: how the text is run.
        pre: the pre-tokenizer's name where its structure is not known.
        adapter: a PEFT LoRA merged into the model.
        keep_seconds: time between two saves of what there is so far.
        note: told why an interrupted run is not gone on with.
        crew: who runs the pieces; None for this process.
        located: of a model at a URL, whose small files `model` holds; None reads what lies there.
        original: the checkpoint, where it is another than the one in the folder `model`.
    """

    model: Path
    text: Path
    beside: Path
    options: CollectOptions = field(default_factory=CollectOptions)
    pre: str | None = None
    adapter: Path | None = None
    keep_seconds: float = 20.0
    note: Callable[[str], object] = lambda _line: None
    crew: Crew | None = None
    located: LocatedModel | None = None
    original: Checkpoint | None = None

    @property
    def partial(self) -> Path:
        """Where an interrupted run is kept."""
        return self.beside.with_name(f".{self.beside.name}.partial-imatrix.gguf")

    def collect(self, *, resume: bool = False, progress: Progress = silent) -> ImportanceMatrix:
        """Run the text, keeping what there is so far in `partial`, which is removed at the end.

        Args:
            resume: go on with an interrupted run of the same model and text.
            progress: told of each piece done.

        Raises:
            UsageError: the text is unreadable.
            CalibrationError: it is too short.
            GGUFError: a GGUF that llama.cpp would not survive.
            EdgepackError: as `open_model` and `collect_importance`.
            KeyboardInterrupt, SystemExit: a signal came; what there was is kept.
        """
        text = read_text(self.text)
        key = self._key(text)
        start = self._kept(key) if resume else None
        last = time.monotonic()

        def keep(matrix: ImportanceMatrix, stopped: bool) -> None:
            nonlocal last
            if (stopped and matrix.entries) or time.monotonic() - last >= self.keep_seconds:
                extra = {keys.IMATRIX_RUN: string(f"{key} {matrix_digest(matrix)}")}
                write_importance(self.partial, matrix, exact=True, extra=extra)
                last = time.monotonic()

        with self._runnable(progress) as gguf:
            matrix = collect_importance(
                gguf, text, self.text.name, self.options, start=start, keep=keep, progress=progress, crew=self.crew
            )
        self.partial.unlink(missing_ok=True)
        return matrix

    @contextmanager
    def _runnable(self, progress: Progress) -> Iterator[Path]:
        """The model itself where it is a GGUF, else one made of it, which is removed again."""
        if self.model.is_file():
            ensure_loads(read_runnable(self.model))
            yield self.model
            return
        from edgepack.export.gguf_file import write_gguf
        from edgepack.export.plan import plan_export
        from edgepack.quant.types.targets import find_target

        mapped = self._mapped()
        temporary = self.beside.with_name(f".{self.beside.name}.calibration.gguf")
        try:
            write_gguf(plan_export(mapped, find_target(_precision(mapped))), temporary, progress=progress)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _mapped(self) -> MappedModel:
        """The checkpoint under GGUF names, its adapter merged."""
        from edgepack.export.mapped_model import map_checkpoint, merged, open_model

        checkpoint = self.original if self.located is None else self.located.checkpoint
        if checkpoint is None:
            return open_model(self.model, pre=self.pre, adapter=self.adapter)
        return map_checkpoint(merged(checkpoint, self.adapter), pre=self.pre)

    def _key(self, text: str) -> str:
        """What two runs must share for one to go on with the other."""
        read = (self.model if self.located is None else None, self.adapter)
        folders = [folder for folder in read if folder is not None]
        files = [path for folder in folders for path in (sorted(folder.glob("*")) if folder.is_dir() else [folder])]
        states: list[object] = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()
        ]
        if self.located is not None:  # its small files are as new as this run
            states.append(self.located.digest())
        decisive: dict[str, object] = {"chunk": self.options.chunk, "include_head": self.options.include_head}
        if self.options.spread:  # which pieces come first depends on how many there are
            decisive["chunks"] = self.options.chunks
        about = [states, hashlib.sha256(text.encode()).hexdigest(), decisive]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def _kept(self, key: str) -> ImportanceMatrix | None:
        """What an interrupted run left, if it is whole and of the same run; None begins anew."""
        if not self.partial.is_file():
            return None
        matrix, why = self._read_partial(key)
        if why:
            self.note(f"{self.partial.name} {why}: the run begins anew")
        return matrix

    def _read_partial(self, key: str) -> tuple[ImportanceMatrix | None, str]:
        """The partial matrix; or None, and what is wrong with it."""
        try:
            run, _, digest = str(read_header(self.partial).get(keys.IMATRIX_RUN)).partition(" ")
            if run != key:
                return None, "is of another model, text or option"
            matrix = read_importance(self.partial)
        except EdgepackError as error:  # cut off or of another version
            return None, f"cannot be read ({error})"
        return (matrix, "") if matrix_digest(matrix) == digest else (None, "is damaged")


def matrix_digest(matrix: ImportanceMatrix) -> str:
    """SHA-256 of everything that a run adds up, in hexadecimal: a flipped bit of a sum would stay unseen otherwise."""
    digest = hashlib.sha256(f"{matrix.chunk_count} {matrix.chunk_size}".encode())
    for name, entry in sorted(matrix.entries.items()):
        digest.update(f"{name}\0{entry.sums.shape}\0".encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(entry.sums, dtype=np.float64).tobytes())
        digest.update(np.ascontiguousarray(entry.counts, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _precision(model: MappedModel) -> str:
    """The float target that loses nothing of the checkpoint's matrices."""
    dtypes = {rows.dtype for rows in model.tensors.values() if len(rows.shape) > 1}
    return _PRECISIONS.get(dtypes.pop(), "gguf-f32") if len(dtypes) == 1 else "gguf-f32"
