"""Little files that would become much: makes them, and measures what refusing each of them costs beyond start-up.

`attack.py` prints the table; tests take the makers from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import zstandard
from tiny_models import Shape, metadata, write_random

from edgepack.edge.fidelity.stored_reference import HEAD as REFERENCE_HEAD
from edgepack.edge.fidelity.stored_reference import MAGIC as REFERENCE_MAGIC
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType, array, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.packaging import records
from edgepack.packaging.coding.layouts import BYTES, grid_layout_of, stream_kind
from edgepack.packaging.coding.planes import plane_sizes
from edgepack.packaging.coding.rans import ASIDE, LEAST_LANES, LaneCoder
from edgepack.packaging.delta.patch_format import Operation, OperationType, PatchHead
from edgepack.packaging.format import (
    DIGEST_BYTES,
    MAX_CHUNK_BYTES,
    Footer,
    Role,
    StreamCodec,
    encode_header,
    sha256,
)
from edgepack.packaging.index.merkle import merkle_root
from edgepack.packaging.index.table import CHUNK_DTYPE, Index, MemberEntry, SegmentEntry, merkle_leaves
from edgepack.packaging.pack import ArchiveWriter
from edgepack.packaging.records import StreamEntry
from edgepack.packaging.segments import MemberPlan, plan_member
from edgepack.trellis import TrellisCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Bomb:
    """A file, and what somebody would do with it: arguments of `edgepack` with the file among them."""

    name: str
    arguments: tuple[str, ...]
    file: str
    bytes: int

    @property
    def harmless(self) -> bool:
        """Whether it is rightly taken: 800 small files are slow only where each of them is looked for anew."""
        return self.arguments[0] == "inspect"


def tiny_model(folder: Path, extra: Mapping[str, Value] | None = None, name: str = "tiny.gguf") -> Path:
    """A sound model of 470 kB, or one with more metadata."""
    path = folder / name
    return path if path.exists() else write_random(path, Shape(extra=dict(extra or {})))


def archive_of(path: Path, members: Sequence[MemberPlan]) -> Path:
    """An archive of members, whatever `pack_archive` would say of it."""
    with path.open("wb") as stream:
        writer = ArchiveWriter(stream, sum(member.bytes for member in members), threads=1)
        for member in members:
            writer.add_member(member, lambda _size: None)
        writer.finish({})
    return path


def sparse(path: Path, size: int) -> Path:
    """A file of zeros that takes no room."""
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def zeros(folder: Path) -> Path:
    """An archive of some kilobytes that says it holds 400 MB."""
    return zero_chunks(folder / "zeros.edgepack", Role.GGUF, "zeros.gguf", 400)


def template(folder: Path) -> Path:
    """An archive with a chat template of 40 MB, in proportion to a model of 470 kB."""
    plan = plan_member(sparse(folder / "chat_template.jinja", 40 * MIB))
    return archive_of(folder / "template.edgepack", [plan_member(tiny_model(folder), main=True), plan])


def large_template(folder: Path) -> Path:
    """A GGUF with a chat template of 20 MB."""
    return tiny_model(folder, {keys.CHAT_TEMPLATE: string("{{ x }}" * (20 * MIB // 7))}, "template.gguf")


def header(folder: Path) -> Path:
    """An archive whose GGUF has a header of 60 MB, an array of zeros, in 11 kB."""
    path, count = folder / "header.gguf", 60 * MIB
    key = struct.pack("<Q", 4) + b"junk" + struct.pack("<IIQ", ValueType.ARRAY, ValueType.UINT8, count)
    architecture = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", ValueType.STRING, 5) + b"llama"
    with path.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + architecture + key)
        stream.truncate(stream.tell() + count)
    return archive_of(folder / "header.edgepack", [replace(plan_member(path), role=Role.GGUF)])


def many_members(folder: Path, adapters: bool) -> Path:
    """An archive with 800 members beside the model."""
    plans = [plan_member(tiny_model(folder), main=True)]
    for number in range(800):
        path = folder / f"member{number}"
        path.write_text(str(number))
        plan = plan_member(path)
        plans.append(replace(plan, role=Role.GGUF if adapters else Role.FILE))
    made = archive_of(folder / f"members-{adapters}.edgepack", plans)
    for number in range(800):
        (folder / f"member{number}").unlink()
    return made


def grid_stream(rows: int, columns: int, lanes: int, code: TrellisCode | None) -> bytes:
    """A sound stream of few bytes: all integers 0, as few chains of dependent steps as there may be."""
    classes = np.full(rows, 0 if code is None else ASIDE, np.uint8)
    coder = LaneCoder(classes, np.zeros(columns, np.uint8), lanes, 0, 3, True, code)
    chosen = None if code is None else np.zeros((rows, columns), np.uint8)
    states, words = coder.encode(np.zeros((rows, columns), np.int16), chosen)
    side = zstandard.ZstdCompressor(level=19).compress(classes.tobytes() + bytes(columns) + b"\1" * columns)
    head = struct.pack("<BBBBIHBBI", 2, 0, 0, 3, columns, lanes, 1, 1, len(side))
    paths = struct.pack("<HH", code.states if code else 1, code.rows if code else 0)
    return head + paths + side + states.tobytes() + words.tobytes()


def grid_chunks(folder: Path, name: str, columns: int, code: TrellisCode | None, count: int) -> Path:
    """An archive of chunks of 16 MiB, each out of some hundred bytes."""
    layout = grid_layout_of(GGMLType.Q8_0)
    raw = MAX_CHUNK_BYTES // layout.block_bytes // columns * columns * layout.block_bytes
    streams: list[tuple[StreamEntry, bytes]] = []
    for number, size in plane_sizes(layout, raw):
        symbols = number < len(layout.planes) and layout.planes[number].zero is not None
        stored = (
            grid_stream(size // columns, columns, min(columns, LEAST_LANES), code)
            if symbols
            else zstandard.ZstdCompressor().compress(bytes(size))
        )
        codec = StreamCodec.GRID if symbols else StreamCodec.ZSTD
        streams.append((StreamEntry(stream_kind(layout, number), codec, 0, len(stored), size), stored))
    record = records.encode_chunk(raw, layout.id, streams)
    path = folder / f"{name}.edgepack"
    _write_equal_chunks(path, (Role.GGUF, "m.gguf"), record, layout.id, raw, count)
    return path


def zero_chunks(path: Path, role: Role, name: str, count: int) -> Path:
    """An archive with one member of so many MiB of zeros."""
    streams = []
    for number, size in plane_sizes(BYTES, MIB):
        stored = zstandard.ZstdCompressor().compress(bytes(size))
        streams.append((StreamEntry(stream_kind(BYTES, number), StreamCodec.ZSTD, 0, len(stored), size), stored))
    _write_equal_chunks(path, (role, name), records.encode_chunk(MIB, BYTES.id, streams), BYTES.id, MIB, count)
    return path


def _write_equal_chunks(path: Path, member: tuple[Role, str], record: bytes, layout: int, raw: int, count: int) -> None:
    """An archive with one member of one tensor, of chunks that are the same."""
    role, name = member
    head, begin = encode_header(raw * count), records.encode_member(role, name, raw * count)
    chunks = np.array([(len(record), raw, record[-DIGEST_BYTES:], bytes(DIGEST_BYTES))] * count, CHUNK_DTYPE)
    segments = (SegmentEntry(layout, "t", count, raw * count, raw * count, bytes(DIGEST_BYTES)),)
    members = (MemberEntry(role, name, 1, raw * count, bytes(DIGEST_BYTES)),)
    root = merkle_root(merkle_leaves(segments, chunks))
    index = Index(head[-DIGEST_BYTES:], root, (), members, segments, chunks, (), {}).encode()
    end = len(head) + len(begin) + len(record) * count
    path.write_bytes(head + begin + record * count + index + Footer(end, len(index), 0).encode())


def nested_arrays(folder: Path) -> Path:
    """A GGUF whose metadata is a million empty arrays in arrays."""
    path = folder / "nested.gguf"
    inner = struct.pack("<IQ", ValueType.UINT8, 0) * 1_000_000
    value = struct.pack("<IIQ", ValueType.ARRAY, ValueType.ARRAY, 1_000_000) + inner
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + value)
    return path


def many_keys(folder: Path) -> Path:
    """A GGUF of 300,000 metadata keys."""
    path, pairs = folder / "keys.gguf", []
    for number in range(300_000):
        key = b"%06x" % number
        pairs.append(struct.pack("<Q", len(key)) + key + struct.pack("<IB", ValueType.UINT8, 0))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
    return path


def coded_weights(folder: Path) -> Path:
    """A GGUF of the variant that says it codes 10¹² weights."""
    path = folder / "coded.gguf"
    described = {"shape": [1 << 20, 1 << 20], "native": "Q8_0", "error": 0.0,
                 "stages": [{"codec": "ternary", "version": 1, "parameters": {}}]}  # fmt: skip
    meta = {**metadata(Shape()), keys.VARIANT_VERSION: u32(1), keys.VARIANT_TENSORS: array(ValueType.STRING, ["w"]),
            keys.VARIANT_TENSOR + "w": string(json.dumps(described))}  # fmt: skip
    with path.open("wb") as stream:
        writer = GGUFWriter(stream, meta, [TensorInfo("w.ternary.codes", (32,), GGMLType.I8)])
        writer.write_header()
        writer.write("w.ternary.codes", bytes(32))
        writer.close()
    return path


def copying_patch(folder: Path) -> tuple[Path, Path]:
    """An old file of 470 kB and a patch of 100 kB that copies it three thousand times."""
    old, patch = tiny_model(folder), folder / "copies.edgepatch"
    content = old.read_bytes()
    print_ = sha256(content[: 64 << 10], content[max(0, len(content) - (64 << 10)) :])
    steps = Operation(OperationType.COPY, 0, 0, len(content), len(content)).encode() * 3000
    head = PatchHead("new", len(content), 3000 * len(content), print_, bytes(32)).encode()
    body = head + steps + Operation(OperationType.END).encode()
    patch.write_bytes(body + hashlib.sha256(body).digest())
    return old, patch


def large_reference(folder: Path) -> Path:
    """A stored reference whose arrays are 200 MB out of a few kilobytes."""
    facts = {"chunks": 1000, "ctx": 1000, "first": 1, "k": 100, "vocabulary": 1000, "bos": None, "label": ""}
    raw, size = json.dumps(facts).encode(), 200 * MIB
    body = zstandard.ZstdCompressor().compress(bytes(size))
    content = REFERENCE_HEAD.pack(REFERENCE_MAGIC, len(raw), len(body)) + raw + body
    path = folder / "large.edgeref"
    path.write_bytes(content + hashlib.sha256(content).digest())
    return path


def make_bombs(folder: Path) -> list[Bomb]:
    """Every bomb, made in `folder`, with the command that would go off."""
    out = str(folder / "out")
    run = ("run", "--prompt", "a", "-n", "1")
    old, patch = copying_patch(folder)
    trellis = grid_chunks(folder, "trellis", 32, TrellisCode(8, 128), 100)
    made = [
        ("60 kB that hold 400 MB of zeros", ("unpack", "-o", out), zeros(folder)),
        ("the same, checked", ("verify", "--deep"), folder / "zeros.edgepack"),
        ("16 MiB by lanes as few as can be", ("unpack", "-o", out), grid_chunks(folder, "one", 1, None, 1)),
        ("1.6 GB on a trellis", ("unpack", "-o", out), trellis),
        ("the same, checked", ("verify", "--deep"), trellis),
        ("a chat template of 40 MB", run, template(folder)),
        ("a chat template of 20 MB in a GGUF", run, large_template(folder)),
        ("a header of 60 MB in 11 kB", ("fit", "--no-probe"), header(folder)),
        ("the same, run", run, folder / "header.edgepack"),
        ("800 members, run as adapters", run, many_members(folder, adapters=True)),
        ("800 files, opened", ("inspect",), many_members(folder, adapters=False)),
        ("a million arrays in arrays", ("verify",), nested_arrays(folder)),
        ("300,000 metadata keys", ("verify",), many_keys(folder)),
        ("10^12 coded weights", ("unpack", "--native", "-o", out), coded_weights(folder)),
        ("a patch that copies 3,000 times", ("patch", str(old), "-o", out), patch),
    ]
    reference = large_reference(folder)
    made.append(("a stored reference of 200 MB", ("validate", str(old), "--reference"), reference))
    return [Bomb(name, _with(arguments, path), str(path), path.stat().st_size) for name, arguments, path in made]


def _with(arguments: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """The file in its place: last behind `--reference`, second of `patch`, else first."""
    if arguments[-1] == "--reference":
        return (*arguments, str(path))
    place = 2 if arguments[0] == "patch" else 1
    return (*arguments[:place], str(path), *arguments[place:])


@dataclass(frozen=True)
class Cost:
    """What a command took: exit code (negative: killed), processor seconds, peak bytes, its last line."""

    code: int
    seconds: float
    peak_bytes: int
    told: str


_CHILD = r"""
import re, resource, sys
from pathlib import Path
from edgepack.cli import execute
code = execute(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]  # own, not inherited
print(f"\nCOST {used.ru_utime + used.ru_stime} {1024 * int(peak)} {code}", file=sys.stderr, flush=True)
"""


def cost_of(arguments: Sequence[str], environment: Mapping[str, str], limit: float = 120.0) -> Cost:
    """Run `edgepack` in a process of its own; one that takes longer than `limit` seconds is ended."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *arguments],
            check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=limit,
            env={**os.environ, **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Cost(-9, limit, 0, f"took longer than {limit:.0f} s")
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode or not lines or not lines[-1].startswith("COST "):
        return Cost(done.returncode or 70, limit, 0, lines[-1] if lines else "")
    _word, seconds, peak, code = lines[-1].split()
    return Cost(int(code), float(seconds), int(peak), lines[-2] if len(lines) > 1 else "")


def least_cost(arguments: Sequence[str], environment: Mapping[str, str], times: int) -> Cost:
    """The run of `times` that took the least of the processor: others share it."""
    return min((cost_of(arguments, environment) for _ in range(times)), key=lambda cost: cost.seconds)


def beyond_start(bomb: Bomb, folder: Path, times: int = 1) -> tuple[Cost, float, int]:
    """What a bomb costs; and its seconds and bytes beyond those of the same command on a file that is nothing."""
    nothing = folder / "nothing"
    nothing.write_bytes(b"nothing at all")
    environment = {"EDGEPACK_CACHE": str(folder / "cache"), "EDGEPACK_TRUST": str(folder / "trust.json")}
    target = max(range(1, len(bomb.arguments)), key=lambda place: bomb.arguments[place] == bomb.file)
    start = [str(nothing) if place == target else text for place, text in enumerate(bomb.arguments)]
    begun = least_cost(start, environment, times)
    cost = least_cost(bomb.arguments, environment, times)
    return cost, cost.seconds - begun.seconds, cost.peak_bytes - begun.peak_bytes
