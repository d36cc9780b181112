"""Opens the cluster that a job names: connects, asks every node what it is and sees, refuses those that differ."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import DependencyError, NetworkError
from edgepack.files.names import hidden_path
from edgepack.pipeline.cluster.backend import WorkerLostError
from edgepack.pipeline.cluster.board import Board
from edgepack.pipeline.cluster.crew import ClusterCrew
from edgepack.pipeline.cluster.nodes import Facts, SeenFile, facts, refuse_others, torch_threads
from edgepack.pipeline.cluster.ordered import TRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from edgepack.files.remote import RemoteFile
    from edgepack.pipeline.cluster.ray_backend import RayBackend
    from edgepack.pipeline.request import ExportRequest

SECONDS = 900.0  # for every node to answer: a first import on a busy machine takes long, and Ray tells of lost ones
_TOLD_SECONDS = 30.0  # between two lines on who has not answered
_WAIT_SECONDS = 5.0
_PROBE_BYTES = 16


@dataclass(frozen=True)
class Job:
    """What a cluster is asked for.

    Attributes:
        address: `auto`, or `HOST:PORT`.
        inputs: files and folders that workers read.
        output: beside which workers may read and write too; None where nothing is written.
        remote: files of weights that workers read where a URL leads.
        tell: told what people should know meanwhile.
    """

    address: str
    inputs: tuple[Path, ...]
    output: Path | None = None
    remote: tuple[RemoteFile, ...] = ()
    tell: Callable[[str], object] = lambda _line: None

    @classmethod
    def of_export(cls, request: ExportRequest) -> Job:
        """An export's."""
        assert request.cluster is not None
        unseen = bool(request.remote) and request.dry_run  # small files of a URL lie in this machine's scratch then
        named = (None if unseen else request.model, request.adapter)
        inputs = tuple(Path(each) for each in named if each is not None)
        output = None if request.dry_run else request.path or Path(request.source.name)
        return cls(request.cluster, inputs, output, request.remote, request.tell)


@contextmanager
def opened_crew(job: Job) -> Iterator[ClusterCrew]:
    """The workers of a job's cluster, all of them fit for it.

    Raises:
        NetworkError: no cluster, or a node that does not answer.
        DependencyError: a node has another version, or ray is not installed.
        CheckpointError, UsageError: a node does not see the model or the output's folder.
    """
    from edgepack.pipeline.cluster.ray_connection import connected

    with connected(job.address) as backend:
        with _probed(job) as files:
            refuse_others(*_asked(backend, files, job.tell))
        yield ClusterCrew(backend, Board(job.tell))


@contextmanager
def _probed(job: Job) -> Iterator[list[SeenFile]]:
    """The files that every node must see: the model's, other inputs, and one written beside the output for this."""
    files = [SeenFile(path.resolve(), path.stat().st_size) for path in _files(job.inputs)]
    files += [SeenFile(Path(file.url), file.size, remote=file) for file in job.remote]
    with ExitStack() as stack:
        if job.output is not None:
            output = job.output.resolve()
            probe = hidden_path(output, f"{secrets.token_hex(4)}.probe")
            content = secrets.token_bytes(_PROBE_BYTES)
            if output.parent.is_dir() and os.access(output.parent, os.W_OK):  # else the output is refused later
                stack.callback(probe.unlink, missing_ok=True)
                probe.write_bytes(content)
                files.append(SeenFile(probe, _PROBE_BYTES, content))
        yield files


def _files(inputs: Iterable[Path]) -> list[Path]:
    """Files that workers read; an absent one is refused where it is opened."""
    found = [sorted(path.iterdir()) if path.is_dir() else [path] for path in inputs]
    return [path for group in found for path in group if path.is_file()]


def _asked(
    backend: RayBackend, files: list[SeenFile], tell: Callable[[str], object]
) -> tuple[Facts, list[Facts]]:  # fmt: skip
    """What this machine is, and every node."""
    threads = torch_threads()
    asked = {backend.on_node(node["NodeID"], facts, files, threads): node for node in backend.nodes()}
    here, found = facts([], threads), []
    began, told, left = time.monotonic(), time.monotonic(), TRIES
    while asked:
        for ticket in backend.wait(list(asked), _WAIT_SECONDS):
            node = asked.pop(ticket)
            try:
                answer = backend.take(ticket)
            except WorkerLostError as error:  # of one worker's death nobody need hear, of a node's everybody
                left -= 1
                if not left:
                    raise NetworkError(f"cluster: node '{_name(node)}' does not answer: {error}") from None
                if any(alive["NodeID"] == node["NodeID"] for alive in backend.nodes()):
                    asked[backend.on_node(node["NodeID"], facts, files, threads)] = node
                continue
            if answer.error is not None:
                raise DependencyError(f"cluster: node '{_name(node)}': {answer.error}")
            found.append(answer.value)
        names = ", ".join(map(_name, asked.values()))
        if asked and time.monotonic() - began > SECONDS:
            raise NetworkError(f"cluster: no answer within {SECONDS:.0f} seconds from: {names}")
        if asked and time.monotonic() - told > _TOLD_SECONDS:
            told = time.monotonic()
            tell(f"cluster: no answer yet from: {names}")
    return here, found


def _name(node: dict[str, object]) -> str:
    return str(node.get("NodeManagerHostname") or node.get("NodeManagerAddress"))
