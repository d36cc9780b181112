"""Opens the cluster that a request names: connects, asks every node what it is and sees, refuses those that differ."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import ExitStack, contextmanager
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
    from collections.abc import Iterator

    from edgepack.pipeline.cluster.ray_backend import RayBackend
    from edgepack.pipeline.request import ExportRequest

SECONDS = 120.0  # for every node to answer: a worker's first import takes some
_PROBE_BYTES = 16


@contextmanager
def opened_crew(request: ExportRequest) -> Iterator[ClusterCrew]:
    """The workers of `request.cluster`, all of them fit for the job.

    Raises:
        NetworkError: no cluster, or a node that does not answer.
        DependencyError: a node has another version, or ray is not installed.
        CheckpointError, UsageError: a node does not see the model or the output's folder.
    """
    from edgepack.pipeline.cluster.ray_backend import connected

    assert request.cluster is not None
    with connected(request.cluster) as backend:
        with _probed(request) as files:
            refuse_others(*_asked(backend, files))
        yield ClusterCrew(backend, Board(request.tell))


@contextmanager
def _probed(request: ExportRequest) -> Iterator[list[SeenFile]]:
    """The files that every node must see: the model's, other inputs, and one written beside the output for this."""
    files = [SeenFile(path.resolve(), path.stat().st_size) for path in _inputs(request)]
    with ExitStack() as stack:
        if not request.dry_run:
            output = (request.path or Path(request.source.name)).resolve()
            probe = hidden_path(output, f"{secrets.token_hex(4)}.probe")
            content = secrets.token_bytes(_PROBE_BYTES)
            if output.parent.is_dir() and os.access(output.parent, os.W_OK):  # else the output is refused later
                stack.callback(probe.unlink, missing_ok=True)
                probe.write_bytes(content)
                files.append(SeenFile(probe, _PROBE_BYTES, content))
        yield files


def _inputs(request: ExportRequest) -> list[Path]:
    """Files that workers read; an absent one is refused where it is opened."""
    named = [Path(each) for each in (request.model, request.adapter) if each is not None]
    found = [sorted(path.iterdir()) if path.is_dir() else [path] for path in named]
    return [path for group in found for path in group if path.is_file()]


def _asked(backend: RayBackend, files: list[SeenFile]) -> tuple[Facts, list[Facts]]:
    """What this machine is, and every node."""
    threads = torch_threads()
    asked = {backend.on_node(node["NodeID"], facts, files, threads): node for node in backend.nodes()}
    here, found = facts([], threads), []
    end, left = time.monotonic() + SECONDS, TRIES
    while asked:
        for ticket in backend.wait(list(asked), max(0.0, min(5.0, end - time.monotonic()))):
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
        if asked and time.monotonic() > end:
            names = ", ".join(_name(node) for node in asked.values())
            raise NetworkError(f"cluster: no answer within {SECONDS:.0f} seconds from: {names}")
    return here, found


def _name(node: dict[str, object]) -> str:
    return str(node.get("NodeManagerHostname") or node.get("NodeManagerAddress"))
