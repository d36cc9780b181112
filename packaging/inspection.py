"""What an archive holds, as plain values for printing; it reads the index only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.packaging.coding.layouts import LAYOUTS, kind_name

if TYPE_CHECKING:
    from edgepack.packaging.archive import Archive
    from edgepack.packaging.index.contents import Member


def _stored_bytes(archive: Archive, member: Member) -> int:
    rows = archive.index.chunks["record_bytes"][member.first_chunk : member.first_chunk + member.n_chunks]
    return int(rows.sum(dtype="int64"))


def _member(archive: Archive, member: Member) -> dict[str, Any]:
    return {
        "name": member.name,
        "role": member.role.name.lower(),
        "bytes": member.bytes,
        "stored_bytes": _stored_bytes(archive, member),
        "sha256": member.sha256,
    }


def describe_archive(archive: Archive) -> dict[str, Any]:
    """Members, streams and dictionaries under the keys that `inspect --json` prints; bytes are plain numbers."""
    return {
        "format_version": f"{archive.version[0]}.{archive.version[1]}",
        "bytes": archive.footer.file_bytes,
        "original_bytes": archive.content_bytes,
        "chunks": len(archive.index.chunks),
        "merkle_root": archive.index.merkle_root.hex(),
        "signed": bool(archive.signatures),
        "attributes": archive.index.attributes,
        "members": [_member(archive, member) for member in archive.members],
        "streams": [
            {
                "kind": kind_name(total.kind),
                "bytes": total.plain_bytes,
                "stored_bytes": total.stored_bytes,
                "dictionary": total.dictionary or None,
                "dictionary_gain": total.without_dictionary - total.stored_bytes,
            }
            for total in archive.index.totals
        ],
        "dictionaries": [
            {"id": entry.id, "kind": kind_name(entry.kind), "bytes": entry.record_bytes, "sha256": entry.digest.hex()}
            for entry in archive.index.dictionaries
        ],
    }


def describe_tensors(archive: Archive, member: Member) -> list[dict[str, Any]]:
    """Name, layout, bytes and SHA-256 of every tensor of a member."""
    records = archive.index.chunks["record_bytes"]
    return [
        {
            "name": segment.entry.name,
            "type": LAYOUTS[segment.entry.layout].name if segment.entry.layout in LAYOUTS else "unknown",
            "bytes": segment.entry.tensor_bytes,
            "stored_bytes": int(
                records[segment.first_chunk : segment.first_chunk + segment.entry.n_chunks].sum(dtype="int64")
            ),
            "sha256": segment.entry.sha256.hex(),
        }
        for segment in member.segments
        if segment.entry.name
    ]
