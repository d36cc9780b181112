"""Flips single bits of sound archives and counts what is accepted: nothing may restore to other bytes.

Every flip is tried as a reader would: the archive opened, its signature judged, every member restored and compared.
`attack.py` prints the counts.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import EdgepackError
from edgepack.gguf.types import GGMLType, TensorInfo, string
from edgepack.gguf.writer import GGUFWriter
from edgepack.packaging.archive import Archive, open_archive
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.signing import generate_key, sign_archive
from edgepack.packaging.trust.policy import ANYONE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Flips:
    """What came of flipping.

    Attributes:
        count: bits that were flipped, one at a time.
        refused: how many of the archives were refused.
        same: how many were accepted and gave the very same bytes: names of members stand in the archive twice, and
            `verify` alone reads the second one.
        wrong: how many were accepted and gave other bytes.
        unforeseen: how many ended in an error that is none of edgepack's.
        worst_seconds: the longest that one took, of the processor.
    """

    count: int
    refused: int
    same: int
    wrong: int
    unforeseen: int
    worst_seconds: float


class Memory:
    """An archive's bytes in memory."""

    def __init__(self, content: bytes | bytearray) -> None:
        self._content = content

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self._content)

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer at the end."""
        return bytes(self._content[offset : offset + size])

    def close(self) -> None:
        """Nothing to free."""


def archives(folder: Path) -> list[Path]:
    """Small archives of each kind: planes, grids, members, signed."""
    rng = np.random.default_rng(1)
    gguf = folder / "model.gguf"
    infos = [TensorInfo("a.weight", (4, 256), GGMLType.Q4_K), TensorInfo("b.weight", (2, 64), GGMLType.Q8_0)]
    with gguf.open("wb") as stream:
        writer = GGUFWriter(stream, {"general.architecture": string("llama")}, infos)
        writer.write_header()
        for info in infos:
            writer.write(info.name, rng.integers(0, 60, info.nbytes, np.uint8).tobytes())
        writer.close()
    text = folder / "licence.txt"
    text.write_text("Use it as you like. " * 10)
    plain = pack_archive(gguf, folder / "plain.edgepack", include=[text], threads=1).output
    grids = pack_archive(gguf, folder / "grids.edgepack", grids=True, dictionary=False, threads=1).output
    generate_key(folder / "key")
    sign_archive(plain, folder / "key")
    return [plain, grids]


def contents(archive: Archive) -> Iterator[bytes]:
    """Every member, chunk by chunk, in this thread."""
    for member in archive.members:
        yield member.name.encode()
        for chunk in archive.chunks(member):
            yield archive.read_chunk(chunk).tobytes()


def flip_bits(path: Path, count: int, seed: int) -> Flips:
    """Flip `count` random bits of the archive at `path`, one after the other."""
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    with open_archive(path, ANYONE) as archive:
        original = list(contents(archive))
    refused = wrong = unforeseen = 0
    worst = 0.0
    for _ in range(count):
        at, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        content[at] ^= bit
        begun = time.process_time()
        try:
            with open_archive(path, ANYONE, source=Memory(content)) as archive:
                wrong += list(contents(archive)) != original
        except EdgepackError:
            refused += 1
        except Exception:  # noqa: BLE001 - counted: it must be none
            unforeseen += 1
        worst = max(worst, time.process_time() - begun)
        content[at] ^= bit
    return Flips(count, refused, count - refused - wrong - unforeseen, wrong, unforeseen, worst)


def together(parts: Sequence[Flips]) -> Flips:
    """The sums of several, and the worst time."""
    sums = (sum(getattr(part, name) for part in parts) for name in ("count", "refused", "same", "wrong", "unforeseen"))
    return Flips(*sums, max(part.worst_seconds for part in parts))
