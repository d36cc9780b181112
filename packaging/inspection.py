"""What an archive holds, as values; it reads the index only. A GGUF alone is looked at by `plain_gguf`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.packaging.coding.layouts import LAYOUTS, kind_name
from edgepack.packaging.trust.signatures import judge_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.packaging.archive import Archive
    from edgepack.packaging.index.contents import Member


@dataclass(frozen=True)
class MemberFacts:
    """One file in an archive.

    Attributes:
        name: under which it was put in.
        role: `gguf` for the model, `file` for others.
        bytes: restored.
        stored_bytes: in the archive.
        sha256: of the restored file, hexadecimal.
    """

    name: str
    role: str
    bytes: int
    stored_bytes: int
    sha256: str


@dataclass(frozen=True)
class StreamFacts:
    """All streams of one kind: bytes of one distribution, compressed together.

    Attributes:
        kind: what they are, such as the scales of Q4_K; of a GGUF, the tensors' type.
        bytes: restored.
        stored_bytes: in the archive.
        dictionary: number of the dictionary that they use, or None.
        dictionary_gain: bytes that it saved.
    """

    kind: str
    bytes: int
    stored_bytes: int
    dictionary: int | None = None
    dictionary_gain: int = 0


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of the model.

    Attributes:
        name: GGUF name.
        type: its type.
        bytes: restored.
        stored_bytes: in the archive.
        sha256: of its blocks, hexadecimal; None in a GGUF, which carries no digests.
    """

    name: str
    type: str
    bytes: int
    stored_bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class DictionaryFacts:
    """A dictionary: its number, the kind of stream that uses it, bytes of its record, SHA-256 in hexadecimal."""

    id: int
    kind: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ArchiveFacts:
    """What only an archive has.

    Attributes:
        chunks: how many.
        merkle_root: over all of them, hexadecimal.
        signed: whether it carries signatures.
        signature: what they say of the archive's index, as `SignatureState`; whom to trust is not asked here.
        attributes: what the packer noted.
        dictionaries: all of them.
    """

    chunks: int
    merkle_root: str
    signed: bool
    signature: str
    attributes: Mapping[str, object]
    dictionaries: tuple[DictionaryFacts, ...]


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
        format_version: `1.0` of an archive, `GGUF 3` of a GGUF.
        bytes: of the file.
        original_bytes: of all members, restored.
        members: files in it.
        streams: what each kind of stream takes.
        archive: what only an archive has; None for a GGUF.
        tensors: of the model; None where nobody asked.
        stated: what the model's metadata say was measured of it: `confidence`, `kv`; taken at its word.
    """

    format_version: str
    bytes: int
    original_bytes: int
    members: tuple[MemberFacts, ...]
    streams: tuple[StreamFacts, ...]
    archive: ArchiveFacts | None = None
    tensors: tuple[TensorFacts, ...] | None = None
    stated: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def json(self) -> dict[str, object]:
        """The object that `edgepack inspect --json` prints: what only an archive has stands beside the rest."""
        told: dict[str, Any] = {
            "format_version": self.format_version,
            "bytes": self.bytes,
            "original_bytes": self.original_bytes,
            "members": [asdict(member) for member in self.members],
            "streams": [asdict(stream) for stream in self.streams],
        }
        tensors = [asdict(tensor) for tensor in self.tensors or ()]
        if self.archive is None:  # a GGUF has no dictionaries and no digests: keys without a meaning are left out
            told["streams"] = [_without(stream, "dictionary_gain") for stream in told["streams"]]
            tensors = [_without(tensor, "sha256") for tensor in tensors]
        else:
            told |= asdict(self.archive) | {"dictionaries": [asdict(entry) for entry in self.archive.dictionaries]}
        told |= self.stated
        return told if self.tensors is None else told | {"tensors": tensors}


def _without(facts: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != key}


def _stored_bytes(archive: Archive, first: int, count: int) -> int:
    return int(archive.index.chunks["record_bytes"][first : first + count].sum(dtype="int64"))


def inspect_archive(archive: Archive, *, tensors: bool = False) -> Inspection:
    """Members, streams and dictionaries of an opened archive.

    Args:
        archive: whose index is read.
        tensors: list the tensors of the model too.
    """
    return Inspection(
        format_version=f"{archive.version[0]}.{archive.version[1]}",
        bytes=archive.footer.file_bytes,
        original_bytes=archive.content_bytes,
        members=tuple(
            MemberFacts(member.name, member.role.name.lower(), member.bytes,
                        _stored_bytes(archive, member.first_chunk, member.n_chunks), member.sha256)
            for member in archive.members
        ),
        streams=_streams(archive),
        archive=ArchiveFacts(
            chunks=len(archive.index.chunks),
            merkle_root=archive.index.merkle_root.hex(),
            signed=bool(archive.signatures),
            signature=judge_record(archive.index_record, archive.signatures).state.value,
            attributes=archive.index.attributes,
            dictionaries=tuple(
                DictionaryFacts(entry.id, kind_name(entry.kind), entry.record_bytes, entry.digest.hex())
                for entry in archive.index.dictionaries
            ),
        ),
        tensors=_tensors(archive, archive.main) if tensors else None,
    )  # fmt: skip


def _streams(archive: Archive) -> tuple[StreamFacts, ...]:
    return tuple(
        StreamFacts(
            kind_name(total.kind),
            total.plain_bytes,
            total.stored_bytes,
            total.dictionary or None,
            total.without_dictionary - total.stored_bytes,
        )
        for total in archive.index.totals
    )


def _tensors(archive: Archive, member: Member) -> tuple[TensorFacts, ...]:
    return tuple(
        TensorFacts(
            segment.entry.name,
            LAYOUTS[segment.entry.layout].name if segment.entry.layout in LAYOUTS else "unknown",
            segment.entry.tensor_bytes,
            _stored_bytes(archive, segment.first_chunk, segment.entry.n_chunks),
            segment.entry.sha256.hex(),
        )
        for segment in member.segments
        if segment.entry.name
    )
