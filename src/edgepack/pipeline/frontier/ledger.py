"""What a study keeps while it runs: points that are done and what is under way; gone on with from any moment.

Everything lies in one hidden folder beside the output. What the points are is `points`'s.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.outcome import clean
from edgepack.errors import IntegrityError, UsageError
from edgepack.files.folders import make_scratch
from edgepack.files.names import hidden_path
from edgepack.files.output import atomic_output
from edgepack.files.source import open_source, parse_json, read_small
from edgepack.pipeline.derivation import model_files
from edgepack.pipeline.frontier.points import Point, point_from_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_ABOUT = "about.json"
_SUFFIX = ".point.json"
_WHOLE, _PIECE, _PIECES = 64 << 20, 64 << 10, 256  # bytes of a file that is read whole; of a piece; how many pieces


class Ledger:
    """The folder of a study under way.

    Args:
        output: the folder that will be written; this one lies beside it, hidden.
        about: what the figures depend on: name → value, for people too.
        resume: go on with what an interrupted study of the same left; else that is removed.

    Raises:
        UsageError: what was left is of another study; the text says in what it differs.
        ResourceError: the folder cannot be made.
    """

    def __init__(self, output: Path, about: Mapping[str, str], *, resume: bool) -> None:
        self.folder = hidden_path(output, "frontier")
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        make_scratch(self.folder, output)
        path = self.folder / _ABOUT
        if path.is_file():
            _check_same(parse_json(read_small(path, IntegrityError), path, IntegrityError), about, self.folder)
        else:
            write_json(path, about)

    def place(self, name: str) -> Path:
        """A folder of that name in it, made where it is absent."""
        found = self.folder / name
        found.mkdir(exist_ok=True)
        return found

    def read(self, name: str) -> Point | None:
        """A point as far as it was measured; `name` is its spec's slug.

        Raises:
            IntegrityError: it is damaged.
        """
        path = self.folder / f"{name}{_SUFFIX}"
        if not path.is_file():
            return None
        return point_from_json(parse_json(read_small(path, IntegrityError), path, IntegrityError), str(path))

    def note(self, name: str, point: Point) -> None:
        """Keep what is known of a point."""
        write_json(self.folder / f"{name}{_SUFFIX}", point.as_json())

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """An object on disk, whole or not at all; numbers that JSON cannot hold become null."""
    with atomic_output(path) as stream:
        stream.write(json.dumps(clean(dict(value)), indent=1, allow_nan=False).encode() + b"\n")


def model_digest(model: Path) -> str:
    """Of the files that decide anything: names, sizes and contents; the same wherever equal files lie.

    Of files above 64 MiB 256 pieces of 64 KiB are read, spread evenly, the first and the last among them: reading
    gigabytes at every start is not worth it, and another training changes every tensor.
    """
    digest = hashlib.sha256()
    for name, path in model_files(model):
        if model.is_dir() or path != model:
            digest.update(name.encode())  # a file alone is the same under any name
        size = path.stat().st_size
        digest.update(f" {size}\n".encode())
        with open_source(path) as stream:
            for start, length in _pieces(size):
                stream.seek(start)
                digest.update(stream.read(length))
    return digest.hexdigest()


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    """(start, bytes) of what is read of a file."""
    if size <= _WHOLE:
        yield from ((start, min(_PIECE, size - start)) for start in range(0, size, _PIECE))
        return
    yield from ((each * (size - _PIECE) // (_PIECES - 1), _PIECE) for each in range(_PIECES))


def _check_same(found: Any, wanted: Mapping[str, str], folder: Path) -> None:
    was = found if isinstance(found, dict) else {}
    others = [name for name in {*was, *wanted} if was.get(name) != wanted.get(name)]
    if others:
        raise UsageError(
            f"--resume: '{folder.name}' is of a study with another {', '.join(sorted(others))}: leave out --resume to"
            " begin anew"
        )
