"""A model at a URL, opened: its small files in a scratch folder, its weights read where they lie, range by range.

What is read of a URL is `files.remote`'s, which tensors that makes `export.checkpoint`'s; what a command refuses of
such a model is its own.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.backwards.checkpoint import opened_source
from edgepack.export.checkpoint import open_checkpoint
from edgepack.file_digest import file_sha256
from edgepack.files.names import hidden_path
from edgepack.files.remote import is_url, open_remote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.files.remote import RemoteFile, RemoteFolder
    from edgepack.model import Checkpoint

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
_READ = ".safetensors"


@dataclass(frozen=True)
class LocatedModel:
    """A model at a URL, while it is open.

    Attributes:
        folder: its small files, under the model's name.
        checkpoint: the model, whose weights are read where they lie.
        weights: the files of them that are read.
    """

    folder: Path
    checkpoint: Checkpoint
    weights: tuple[RemoteFile, ...]

    def digest(self) -> str:
        """Of what decides anything, in hexadecimal: small files by contents, weights by name, size and version.

        Raises:
            NetworkError: the weights are not there any more.
        """
        small = [f"{path.name} {file_sha256(path)}" for path in sorted(self.folder.iterdir()) if path.is_file()]
        about = "\n".join([*small, *(f"{file.url} {file.size} {file.version()}" for file in self.weights)])
        return hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def opened_place(model: str | os.PathLike[str], output: Path | None) -> Iterator[tuple[Path, LocatedModel | None]]:
    """Where a model lies; of one at a URL the folder of its small files, and all of it, while the block lasts.

    Args:
        model: a path, or a URL as text.
        output: as `located_model`, which raises.
    """
    if not is_url(model):
        yield Path(model), None
        return
    with located_model(str(model), output) as found:
        yield found.folder, found


@contextmanager
def located_model(url: str, output: Path | None) -> Iterator[LocatedModel]:
    """The model at a URL, while the block lasts; its small files are fetched once.

    Args:
        url: of a Hugging Face folder.
        output: the scratch folder lies beside it, where the nodes of a cluster see it; None writes nothing there.

    Raises:
        UsageError: fsspec knows no such protocol.
        DependencyError: fsspec, or what it needs for the protocol, is not installed.
        NetworkError: the folder is not there, or cannot be read.
        CheckpointError: a sentence model, or as `export.checkpoint.open_checkpoint`.
    """
    found = open_remote(url)
    if "modules.json" in found.files:
        raise CheckpointError(f"{found.url}: a sentence model has files in folders: expected MODEL as a folder")
    weights = {name: file for name, file in found.files.items() if _is_weight(name)}
    with _scratch(found, output) as folder:
        for name in found.files.keys() - weights.keys():
            found.fetch(name, folder)
        read = tuple(file for name, file in weights.items() if name.endswith(_READ))
        yield LocatedModel(folder, open_checkpoint(folder, weights), read)


@contextmanager
def opened_checkpoint_at(model: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """The checkpoint in a folder, at a URL, or of a GGUF, while the block lasts.

    Args:
        model: a path, or a URL as text.

    Raises:
        EdgepackError: as `export.backwards.checkpoint.opened_source`, and as `located_model`.
    """
    with opened_place(model, None) as (path, located):
        if located is not None:
            yield located.checkpoint
            return
        with opened_source(path) as checkpoint:
            yield checkpoint


def _is_weight(name: str) -> bool:
    """Whether a file is read by ranges; an adapter in the model's own folder is small and taken whole."""
    return name.endswith(_WEIGHTS) and not name.startswith("adapter_")


@contextmanager
def _scratch(found: RemoteFolder, output: Path | None) -> Iterator[Path]:
    """An empty folder with the model's name, as a file's name and keys come of it; gone at the end."""
    beside = hidden_path((output or Path(found.name)).absolute(), "model")
    place = None if output is None or not os.access(beside.parent, os.W_OK) else beside.parent  # refused later
    with tempfile.TemporaryDirectory(prefix=f"{beside.name}-", dir=place) as made:
        folder = Path(made, found.name)
        folder.mkdir()
        yield folder
