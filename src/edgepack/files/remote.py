"""A folder at a URL of fsspec's (`s3://…`, `hf://…`, `file://…`): its list, its small files, ranges of large ones.

Nothing is kept between two calls, so that another process reads on from a file's address and length alone. What the
bytes mean is left to others. https://filesystem-spec.readthedocs.io
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError, DependencyError, NetworkError, UsageError
from edgepack.files.source import MAX_SMALL_BYTES
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgepack.progress import Progress

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]+")  # of a file in the folder, and of nothing out of it
_PIECE = 16 << 20  # bytes that are read at a time where a whole file is digested


def is_url(place: object) -> bool:
    """Whether a model's place is a URL and no path."""
    return isinstance(place, str) and _URL.match(place) is not None


@dataclass(frozen=True)
class RemoteFile:
    """One file of it.

    Attributes:
        url: of the file.
        size: its length in bytes.
    """

    url: str
    size: int

    def read(self, start: int, length: int) -> bytes:
        """That many bytes from `start` on, fewer where the file has become shorter.

        Raises:
            NetworkError: it cannot be read.
            DependencyError: fsspec, or what it needs for the protocol, is not installed.
        """
        if not length:
            return b""
        with _told(self.url):
            system, path = _system(self.url)
            return bytes(system.cat_file(path, start=start, end=start + length))

    def stat(self) -> int:
        """Its length now; raises as `read`."""
        with _told(self.url):
            system, path = _system(self.url)
            return int(system.info(path)["size"])

    def version(self) -> str:
        """What changes when another file takes its place, as far as its server says; raises as `read`."""
        with _told(self.url):
            system, path = _system(self.url)
            return str(system.ukey(path))

    def sha256(self, label: str = "digesting", progress: Progress = silent) -> str:
        """Of all of it, in hexadecimal; `progress` is told the bytes read under `label`. Raises as `read`."""
        digest = hashlib.sha256()
        with progress(label, self.size) as advance:
            for start in range(0, self.size, _PIECE):
                digest.update(piece := self.read(start, min(_PIECE, self.size - start)))
                advance(len(piece))
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class RemoteFolder:
    """The files of a folder, without those of folders in it.

    Attributes:
        url: of the folder.
        files: name → file.
    """

    url: str
    files: Mapping[str, RemoteFile]

    @property
    def name(self) -> str:
        """Its last part, as a local folder's name."""
        last = self.url.rstrip("/").rpartition("/")[2]
        return last if _NAME.fullmatch(last) else "model"

    def fetch(self, name: str, folder: Path) -> None:
        """Write a small file into a local folder.

        Raises:
            CheckpointError: it is longer than anything small.
            NetworkError: as `RemoteFile.read`.
        """
        file = self.files[name]
        if file.size > MAX_SMALL_BYTES:
            raise CheckpointError(f"{file.url}: expected at most {MAX_SMALL_BYTES} bytes, got {file.size}")
        (folder / name).write_bytes(file.read(0, file.size))


def open_remote(url: str) -> RemoteFolder:
    """The folder at a URL; only its list is read.

    Raises:
        UsageError: fsspec knows no such protocol.
        DependencyError: fsspec, or what it needs for the protocol, is not installed.
        NetworkError: the folder is not there, or cannot be listed.
    """
    with _told(url):
        system, path = _system(url)
        listed = system.ls(path, detail=True)
    base, files = url.rstrip("/"), {}
    for each in listed:
        name = str(each["name"]).rstrip("/").rpartition("/")[2]
        if each.get("type") == "file" and each.get("size") is not None and _NAME.fullmatch(name):
            files[name] = RemoteFile(f"{base}/{name}", int(each["size"]))
    return RemoteFolder(base, dict(sorted(files.items())))


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it; fsspec keeps one for each place it was asked for."""
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise DependencyError(
            f"model '{url}': 'fsspec' is not installed, use pip install 'edgepack[cluster]'"
        ) from None
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise DependencyError(f"model '{url}': {error}") from None
    except ValueError as error:
        raise UsageError(f"model '{url}': expected a folder, a GGUF or a URL that fsspec reads: {error}") from None
    return system, str(path)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What a file system raises in one line."""
    failures: tuple[type[BaseException], ...] = (OSError, TimeoutError, ValueError, RuntimeError, *_client_errors())
    try:
        yield
    except failures as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[:1] or [type(error).__name__]
        told = reason if isinstance(reason, str) else reason[0]
        raise NetworkError(f"model '{url}': cannot be read: {type(error).__name__}: {told}") from None


def _client_errors() -> tuple[type[BaseException], ...]:
    """What the client of http raises, where it is installed: it has a family of its own."""
    try:
        from aiohttp import ClientError
    except ModuleNotFoundError:
        return ()
    return (ClientError,)
