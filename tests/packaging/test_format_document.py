"""FORMAT.md and the code describe the same bytes."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from edgepack.gguf.types import GGMLType
from edgepack.packaging import format as archive_format
from edgepack.packaging.coding.layouts import BYTES, METADATA, TEXT, layout_of
from edgepack.packaging.delta import patch_format

DOCUMENT = (Path(__file__).resolve().parents[2] / "packaging" / "FORMAT.md").read_text()
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
# heading → (struct, whether the SHA-256 row behind it belongs to the table)
TABLES = {
    "Header": (archive_format.HEADER, True),
    "Footer": (archive_format.FOOTER, True),
    "Record head": (archive_format.RECORD_HEAD, False),
    "Member record": (archive_format.MEMBER_HEAD, False),
    "Chunk record": (archive_format.CHUNK_HEAD, False),
    "Stream entry": (archive_format.STREAM, False),
    "Signature record": (archive_format.SIGNATURE, False),
    "Index record": (archive_format.INDEX_HEAD, False),
    "Dictionary entry": (archive_format.DICTIONARY_ENTRY, False),
    "Member entry": (archive_format.MEMBER_ENTRY, False),
    "Segment entry": (archive_format.SEGMENT_ENTRY, False),
    "Chunk entry": (archive_format.CHUNK_ENTRY, False),
    "Total entry": (archive_format.TOTAL_ENTRY, False),
    "Patch head": (patch_format.PATCH_HEAD, False),
    "Operation": (patch_format.OPERATION, False),
}


def rows(heading: str) -> list[tuple[int, int, str]]:
    """(offset, size, type) of the table under a heading."""
    section = re.search(rf"^#+ {heading}[:\n].*?(?=^#)", DOCUMENT + "\n#", re.MULTILINE | re.DOTALL)
    assert section, heading
    return [(int(a), int(b), c) for a, b, c in re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section[0], re.MULTILINE)]


@pytest.mark.parametrize("heading", TABLES)
def test_a_documented_table_is_the_struct_of_the_code(heading: str) -> None:
    layout, sealed = TABLES[heading]
    fields = rows(heading)
    assert [offset for offset, _, _ in fields] == [sum(size for _, size, _ in fields[:i]) for i in range(len(fields))]
    if sealed:
        assert fields.pop() == (layout.size, archive_format.DIGEST_BYTES, "bytes")
    codes = "".join(f"{size}s" if kind == "bytes" else CODES[kind] for _, size, kind in fields)
    assert struct.calcsize("<" + codes) == layout.size
    normalised = re.sub(r"(\d+)([BHIQ])", lambda match: match[2] * int(match[1]), layout.format)
    assert f"<{codes}" == normalised


@pytest.mark.parametrize(("heading", "size"), re.findall(r"^#+ (.*): (\d+) bytes", DOCUMENT, re.MULTILINE))
def test_documented_sizes_are_those_of_the_tables(heading: str, size: str) -> None:
    assert sum(size for _, size, _ in rows(heading)) == int(size)


def test_documented_numbers_are_those_of_the_code() -> None:
    assert f"version {archive_format.MAJOR}.{archive_format.MINOR}" in DOCUMENT.splitlines()[0]
    assert archive_format.MAGIC.hex(" ").upper() in DOCUMENT
    assert patch_format.PATCH_MAGIC.hex(" ").upper() in DOCUMENT
    assert f"`.edgepatch`, version {patch_format.PATCH_VERSION}" in DOCUMENT
    for operation in patch_format.OperationType:
        assert f"{operation.value} {operation.name.lower()}" in DOCUMENT
    for kind in archive_format.RecordType:
        assert f"{kind.value} {kind.name.lower()}" in DOCUMENT
    for role in archive_format.Role:
        assert f"{role.value} {role.name.lower().replace('_', ' ')}" in DOCUMENT.replace("1 GGUF", "1 gguf")
    assert (BYTES.id, METADATA.id, TEXT.id) == (0, 1, 2)
    assert all(layout_of(kind).id == 16 + kind for kind in GGMLType)
    assert archive_format.SIGNING_CONTEXT.rstrip(b"\0").decode() in DOCUMENT
    for limit in ("16 MiB", "16 streams", "1024 bytes", "4 MiB", "1 MiB", "64 signatures", "32 MiB"):
        assert limit in DOCUMENT
    sizes = (archive_format.MAX_CHUNK_BYTES, archive_format.MAX_DICTIONARY_BYTES, archive_format.MAX_ATTRIBUTES_BYTES)
    assert sizes == (16 << 20, 4 << 20, 1 << 20)
    assert (archive_format.MAX_STREAMS, archive_format.MAX_NAME_BYTES, archive_format.MAX_SIGNATURES) == (16, 1024, 64)
