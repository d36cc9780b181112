"""Whether llama.cpp survives opening a file: tried once in a process of its own, remembered by the header's digest.

What is known to be wrong is refused before (`check`); this is for what nobody foresaw. No weight is read, so it takes
about a second, once for a file and a version of llama.cpp. EDGEPACK_PROBE=off leaves it out.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.edge.install.cache_folder import cache_folder
from edgepack.errors import GGUFError
from edgepack.quant.codecs.ggml.library import ggml_libraries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.gguf.reader import GGUFHeader

_LIMIT_SECONDS = 120  # of the clock; the child's own limit is one of its processor
_WORKER = "loads_worker.py"
_OWN_CODES = (0, 1, 2)  # Python's; an abort is a signal, on Windows 3 or more
_REVISION = b"2"  # of what the worker does


def ensure_loads(header: GGUFHeader, head: bytes | None = None) -> None:
    """Let a child process open the file, unless that went well before.

    Args:
        header: of the file, checked; its path is opened where `head` is None.
        head: all bytes before the tensors' data, where they stand in no file (a model inside an archive).

    Raises:
        GGUFError: llama.cpp aborted, crashed or did not come to an end.
    """
    if os.environ.get("EDGEPACK_PROBE") == "off":
        return
    record = _record(header, head)
    if record.exists():
        return
    with _file(header, head) as path:
        _try(path, header.path)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.touch()


def _record(header: GGUFHeader, head: bytes | None) -> Path:
    """The empty file that says so: named after header, length, the engines' versions and the worker's."""
    digest = hashlib.sha256(_REVISION + _engines().encode() + header.file_bytes.to_bytes(8, "little"))
    if head is None:
        with header.path.open("rb") as stream:
            digest.update(stream.read(header.data_start))
    else:
        digest.update(head)
    return cache_folder() / "loads" / digest.hexdigest()


def _engines() -> str:
    """What llama.cpp comes in, by its libraries' lengths and times: another build may fail where this one does not.

    Reading the packages' versions would take longer than all else that a later start does with this record.
    """
    found = []
    for library in ggml_libraries():
        status = library.path.stat()
        found.append(f"{library.package} {status.st_size} {status.st_mtime_ns}")
    return ", ".join(found)


@contextmanager
def _file(header: GGUFHeader, head: bytes | None) -> Iterator[Path]:
    """The file itself, or one of its length that has its header and, after that, a hole."""
    if head is None:
        yield header.path
        return
    with tempfile.TemporaryDirectory(prefix="edgepack-loads-") as folder:
        path = Path(folder) / "model.gguf"
        with path.open("wb") as stream:
            stream.write(head)
            stream.truncate(header.file_bytes)
        yield path


def _try(path: Path, label: Path) -> None:
    script = Path(__file__).with_name(_WORKER)
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(script), str(path.absolute())],
            check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=_LIMIT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise GGUFError(f"{label}: llama.cpp does not come to an end with it") from None
    if done.returncode not in _OWN_CODES:
        raise GGUFError(f"{label}: llama.cpp does not survive it: {_cause(done.returncode, done.stderr)}")


def _cause(code: int, log: bytes) -> str:
    """Why the child ended: the assertion that it printed, or the signal."""
    if -code in (getattr(signal, "SIGXCPU", None), getattr(signal, "SIGKILL", None)):
        return "it does not come to an end"
    lines = [line.strip() for line in log.decode(errors="replace").splitlines()]
    said = next((line for line in lines if "GGML_ASSERT" in line or "GGML_ABORT" in line or "what():" in line), "")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name} {said[said.find('GGML') :] if 'GGML' in said else said}"[:200].strip()
