"""A model at a URL: its small files in a scratch folder, its weights read where they lie, range by range.

What is read of a URL is `files.remote`'s, which tensors that makes `export.checkpoint`'s.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError, UsageError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.files.names import hidden_path
from edgepack.files.remote import RemoteFolder, is_url, open_remote
from edgepack.pipeline.options import CODED, GGUF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepack.pipeline.request import ExportRequest

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
# What reads the model's own files, and not the tensors that are opened here.
_NEEDS_FOLDER: tuple[tuple[Callable[[ExportRequest], object], str], ...] = (
    (lambda r: r.is_gated or r.validate, "holding a file against its original"),
    (lambda r: r.mmproj, "--mmproj"),
    (lambda r: r.for_device is not None and r.kind not in (GGUF, CODED), "--target wire with --for-device"),
    (lambda r: r.kind == GGUF and r.calibration is not None and not (r.has_passes or r.refines),
     "--calibration without --refine"),
)  # fmt: skip


@contextmanager
def with_located(request: ExportRequest) -> Iterator[ExportRequest]:
    """The request with a model at a URL opened, while the block lasts; any other as it is.

    Small files are fetched once, into a folder beside the output, which the nodes of a cluster see.

    Raises:
        UsageError: what is asked for reads more than tensors, or no such protocol.
        DependencyError: fsspec, or what it needs for the protocol, is not installed.
        NetworkError: the folder is not there, or cannot be read.
        CheckpointError: as `export.checkpoint.open_checkpoint`.
    """
    if not is_url(request.model):
        yield request
        return
    url = str(request.model)
    for needs, what in _NEEDS_FOLDER:
        if needs(request):
            raise UsageError(f"{what}: expected MODEL as a folder, got the URL '{url}'")
    found = open_remote(url)
    weights = {name: file for name, file in found.files.items() if _is_weight(name)}
    with _scratch(request, found) as folder:
        for name in found.files.keys() - weights.keys():
            found.fetch(name, folder)
        checkpoint = open_checkpoint(folder, weights)
        yield replace(request, model=folder, original=checkpoint, remote=tuple(weights.values()))


def _is_weight(name: str) -> bool:
    """Whether a file is read by ranges; an adapter in the model's own folder is small and taken whole."""
    return name.endswith(_WEIGHTS) and not name.startswith("adapter_")


@contextmanager
def _scratch(request: ExportRequest, found: RemoteFolder) -> Iterator[Path]:
    """An empty folder with the model's name, as a file's name and keys come of it; gone at the end."""
    if "modules.json" in found.files:
        raise CheckpointError(f"{found.url}: a sentence model has files in folders: expected MODEL as a folder")
    beside = hidden_path((request.path or Path(f"{found.name}.gguf")).absolute(), "model")
    place = None if request.dry_run or not os.access(beside.parent, os.W_OK) else beside.parent  # refused later
    with tempfile.TemporaryDirectory(prefix=f"{beside.name}-", dir=place) as made:
        folder = Path(made, found.name)
        folder.mkdir()
        yield folder
