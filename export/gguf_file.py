"""Writes a planned GGUF in one streaming pass: chunks of rows are read, converted and written in order.

Memory is bounded by a few chunks whatever the model's size; no intermediate file. What becomes which type
is the plan's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.chunks import chunks
from edgepack.export.crew_chunks import crew_chunks
from edgepack.export.interrupted import journaled_output, noted, plan_digest
from edgepack.export.plan import shard_paths
from edgepack.files.source import open_source
from edgepack.gguf.writer import GGUFWriter
from edgepack.ordered_threads import ordered_map
from edgepack.processors import default_threads
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.export.plan import ExportPlan, PlannedTensor
    from edgepack.progress import Progress


def encoded_chunks(tensors: Sequence[PlannedTensor], threads: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(tensor name, bytes) of every chunk in file order, computed ahead by `threads` threads.

    The thread count does not change the bytes: each row is quantised by itself.
    """
    every = (chunk for tensor in tensors for chunk in chunks(tensor))
    return ordered_map(lambda chunk: (chunk.tensor.info.name, chunk.encode()), every, threads)


def write_gguf(
    plan: ExportPlan,
    path: Path,
    *,
    threads: int | None = None,
    progress: Progress = silent,
    resume: bool = False,
    crew: Crew | None = None,
) -> int:
    """Write `plan` to `path`, which appears only when it is whole.

    Args:
        plan: what to write.
        path: the final name.
        threads: that quantise; as many as processors when None.
        progress: told the bytes written.
        resume: go on after the tensors that an interrupted export of the same plan has left; the bytes are
            the same as without interruption.
        crew: who quantises in place of threads; None for this process.

    Returns:
        The file's length in bytes.

    Raises:
        NumericError: a weight is not finite or does not fit its type.
        ResourceError: the disk is or becomes too small.
        CheckpointError: the source changed while it was read.
    """
    digest = plan_digest(plan)
    kept = noted(path, digest) if resume else None
    if kept is not None and kept.bytes != plan.layout.length_after(min(kept.tensors, len(plan.tensors))):
        kept = None
    done = kept.tensors if kept else 0
    with journaled_output(path, digest, plan.total_bytes, kept) as (stream, journal):
        writer = GGUFWriter(stream, plan.metadata, plan.infos)
        if done:
            writer.resume_after(done)
        else:
            writer.write_header()
        with progress("export", sum(info.nbytes for info in plan.infos)) as advance:
            advance(sum(info.nbytes for info in plan.infos[:done]))
            left = plan.tensors[done:]
            encoded = encoded_chunks(left, threads or default_threads()) if crew is None else crew_chunks(left, crew)
            for name, blocks in encoded:
                writer.write(name, blocks.data)
                advance(blocks.nbytes)
                journal.note(writer.tensors_written, writer.length_after(writer.tensors_written))
        writer.close()
        plan.sources.check(CheckpointError)
    return plan.total_bytes


def write_shards(
    shards: Sequence[ExportPlan],
    path: Path,
    *,
    threads: int | None = None,
    progress: Progress = silent,
    resume: bool = False,
    crew: Crew | None = None,
) -> list[Path]:
    """Write one file, or several named `NAME-00001-of-0000N.gguf`; gives their paths. Raises as `write_gguf`.

    With `resume`, shards that an interrupted run has finished are kept.
    """
    if len(shards) == 1:
        write_gguf(shards[0], path, threads=threads, progress=progress, resume=resume, crew=crew)
        return [path]
    paths = shard_paths(path, len(shards))
    for shard, name in zip(shards, paths, strict=True):
        if not (resume and _holds(name, shard)):
            write_gguf(shard, name, threads=threads, progress=progress, resume=resume, crew=crew)
    return paths


def _holds(path: Path, plan: ExportPlan) -> bool:
    """Whether `path` is a finished file of `plan`, as far as its header and length say."""
    header = plan.layout.header
    if not path.is_file() or path.stat().st_size != plan.total_bytes:
        return False
    with open_source(path) as stream:
        return stream.read(len(header)) == header
