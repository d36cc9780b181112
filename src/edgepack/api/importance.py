"""`edgepack.imatrix`: importance matrices collected, merged and written; `pipeline.importance` collects."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.opening import ignore
from edgepack.api.values import FilePath, JsonObject, optional_path, paths
from edgepack.edge.llama.importance_collect import CollectOptions
from edgepack.errors import UsageError
from edgepack.files.claim import claimed_output
from edgepack.files.remote import is_url
from edgepack.pipeline.importance import ImportanceRun, manned
from edgepack.pipeline.located import opened_place
from edgepack.progress import silent
from edgepack.quant.calibration.importance import ImportanceMatrix, merge, statistics
from edgepack.quant.calibration.importance_file import read_importance, write_importance, write_legacy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.progress import Progress

DEFAULT_NAME = "imatrix.gguf"


@dataclass(frozen=True)
class ImportanceResult:
    """What collecting or merging gave.

    Attributes:
        matrix: the importance matrix.
        output: the file that was written; None for none.
        bytes: its length; 0 for none.
        seconds: wall time.
    """

    matrix: ImportanceMatrix
    output: Path | None
    bytes: int
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens of text that were run."""
        return self.matrix.chunk_count * self.matrix.chunk_size

    def json(self) -> JsonObject:
        """The object that `edgepack imatrix --json` prints: per-tensor statistics among its keys."""
        where: JsonObject = {} if self.output is None else {"output": str(self.output), "bytes": self.bytes}
        return {
            **where,
            "entries": len(self.matrix.entries),
            "chunks": self.matrix.chunk_count,
            "seconds": round(self.seconds, 3),
            "statistics": [asdict(entry) for entry in statistics(self.matrix)],
        }


def imatrix(
    model: FilePath | None = None,
    text: FilePath | None = None,
    output: FilePath | None = None,
    *,
    merged: Sequence[FilePath] = (),
    ctx: int = 512,
    chunks: int | None = None,
    include_head: bool = False,
    resume: bool = False,
    force: bool = False,
    pre: str | None = None,
    threads: int | None = None,
    n_gpu_layers: int = 0,
    cluster: str | None = None,
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> ImportanceResult:
    """Collect an importance matrix of a model over a text, and add others up with it.

    Args:
        model: a Hugging Face folder, a GGUF, or a URL of fsspec's of such a folder (`s3://…`), as text; None only
            merges.
        text: a UTF-8 text file to run through it.
        output: where it is written, `.dat` in the older form; None writes nothing.
        merged: files of matrices to add.
        ctx: tokens in a piece of text; no more than the model knows.
        chunks: at most this many pieces.
        include_head: watch output.weight too.
        resume: go on with an interrupted run of the same model and text.
        force: replace a file that is there already; never an input.
        pre: the pre-tokenizer's name, where its structure is not known.
        threads: None for all processors.
        n_gpu_layers: llama.cpp's layers on the GPU; -1 is all.
        cluster: the Ray cluster whose nodes run the pieces, for the same bytes: `auto`, or `HOST:PORT` of its head.
        progress: told of each piece done.
        note: told why an interrupted run is not gone on with.

    Raises:
        UsageError: model without text or the reverse, or nothing to do.
        CalibrationError: the text cannot be used, or matrices do not fit together.
        EdgepackError: the model cannot be opened.
    """
    if (model is None) != (text is None):
        raise UsageError("imatrix: expected MODEL and --text together")
    if model is None and not merged:
        raise UsageError("imatrix: expected MODEL with --text, or --merge FILE")
    started = time.monotonic()
    target, others = optional_path(output), paths(merged)
    inputs = [Path(each) for each in (model, text, *others) if each is not None and not is_url(each)]
    with nullcontext() if target is None else claimed_output(target, inputs=inputs, force=force):
        matrices = [read_importance(path) for path in others]
        if model is not None and text is not None:
            options = CollectOptions(
                ctx, chunks, include_head=include_head, threads=threads or 0, n_gpu_layers=n_gpu_layers
            )
            beside = target or Path(DEFAULT_NAME)
            with opened_place(model, beside) as (folder, found):
                run = ImportanceRun(folder, Path(text), beside, options, pre, note=note, located=found)
                with manned(run, cluster) as ready:
                    matrices.append(ready.collect(resume=resume, progress=progress))
        matrix = merge(matrices)
        if target is not None:
            (write_legacy if target.suffix == ".dat" else write_importance)(target, matrix)
    size = 0 if target is None else target.stat().st_size
    return ImportanceResult(matrix, target, size, time.monotonic() - started)
