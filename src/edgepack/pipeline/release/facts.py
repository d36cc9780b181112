"""Everything that a release says of a model, read once from its archive: header, derivation, certificate, licence.

Nothing is measured and nothing written here; `card` words it, `folder` writes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.certificate import MEMBER as CERTIFICATE
from edgepack.edge.fidelity.stored_reference import decode
from edgepack.errors import UsageError
from edgepack.gguf import keys
from edgepack.gguf.variant import is_variant
from edgepack.packaging.derivation import SUFFIX, derivation_of
from edgepack.packaging.format import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.edge.fidelity.stored_reference import StoredReference
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.packaging.archive import Archive
    from edgepack.packaging.derivation import Derivation

_REPOSITORY = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")
_POOLING_NONE = 0


@dataclass(frozen=True)
class TypeShare:
    """Tensors of one type: how many, and their bytes."""

    type: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class ReleaseFacts:
    """A model as its archive tells it.

    Attributes:
        name: for people.
        stem: of its files.
        architecture: the GGUF's.
        archive_bytes, gguf_bytes: of the archive and of the GGUF that it restores.
        context: tokens that the model was trained with; 0 where the header does not say.
        parameters: weights of all tensors.
        types: from the most bytes to the least.
        licence: an SPDX id or what the header says; empty where it says nothing.
        base: the repository of the original on the hub; empty where nobody knows.
        languages: codes.
        embeds: whether the model gives embeddings instead of text.
        variant: whether stock llama.cpp cannot run the GGUF as it is.
        templated: whether it has a chat template.
        others: names of further GGUFs: adapters, projectors.
        licence_member: name of the licence's text among the members; empty for none.
        derivation: None where there is none.
        certificate: None likewise.
        metadata: the header's, for the configuration.
    """

    name: str
    stem: str
    architecture: str
    archive_bytes: int
    gguf_bytes: int
    context: int
    parameters: int
    types: tuple[TypeShare, ...]
    licence: str
    base: str
    languages: tuple[str, ...]
    embeds: bool
    variant: bool
    templated: bool
    others: tuple[str, ...]
    licence_member: str
    derivation: Derivation | None
    certificate: StoredReference | None
    metadata: Mapping[str, Any]

    @property
    def figures(self) -> Mapping[str, Any]:
        """What the certificate measured; empty without one."""
        figures = {} if self.certificate is None else self.certificate.facts.get("figures", {})
        return figures if isinstance(figures, dict) else {}


def read_facts(archive: Archive, stem: str) -> ReleaseFacts:
    """The facts of an open archive.

    Args:
        archive: sound, its signatures judged.
        stem: what files will be called.

    Raises:
        ArchiveError, IntegrityError, GGUFError: a member is not sound.
    """
    header, main = archive.gguf_header(), archive.main
    names = [member.name for member in archive.members]
    licences = [member.name for member in archive.members if member.role is Role.LICENCE]
    derivation = derivation_of(archive) if any(name.endswith(SUFFIX) for name in names) else None
    certificate = decode(archive.read_member(CERTIFICATE), CERTIFICATE) if CERTIFICATE in names else None
    architecture = str(header.get(keys.ARCHITECTURE))
    return ReleaseFacts(
        name=_text(header, keys.NAME) or stem,
        stem=stem,
        architecture=architecture,
        archive_bytes=archive.path.stat().st_size,
        gguf_bytes=main.bytes,
        context=_whole(header, f"{architecture}.context_length"),
        parameters=sum(prod(info.shape) for info in header.tensors),
        types=_types(header),
        licence=_text(header, "general.license"),
        base=_base(header, derivation),
        languages=_texts(header, "general.languages"),
        embeds=_embeds(header, architecture),
        variant=is_variant(header),
        templated=keys.CHAT_TEMPLATE in header.metadata or any(m.role is Role.CHAT_TEMPLATE for m in archive.members),
        others=tuple(_other_names(archive)),
        licence_member=licences[0] if licences else "",
        derivation=derivation,
        certificate=certificate,
        metadata={key: value.value for key, value in header.metadata.items()},
    )


def _other_names(archive: Archive) -> list[str]:
    found = [member.name for member in archive.beside]
    if len({PurePosixPath(name).name for name in found}) != len(found):
        raise UsageError(f"'{archive.path}': two GGUFs of it have one name in different folders")
    return found


def _types(header: GGUFHeader) -> tuple[TypeShare, ...]:
    found: dict[str, list[int]] = {}
    for info in header.tensors:
        found.setdefault(info.type.name, []).append(info.nbytes)
    shares = [TypeShare(name, len(sizes), sum(sizes)) for name, sizes in found.items()]
    return tuple(sorted(shares, key=lambda share: -share.bytes))


def _base(header: GGUFHeader, derivation: Derivation | None) -> str:
    """The original's repository: what the derivation says, or the header's own base."""
    if derivation is not None and derivation.repository:
        return derivation.repository
    found = _REPOSITORY.fullmatch(_text(header, "general.base_model.0.repo_url"))
    return found[1] if found else ""


def _embeds(header: GGUFHeader, architecture: str) -> bool:
    pooling = header.get(f"{architecture}.pooling_type")
    return header.get(f"{architecture}.attention.causal") is False or pooling not in (None, _POOLING_NONE)


def _text(header: GGUFHeader, key: str) -> str:
    value = header.get(key)
    return value if isinstance(value, str) else ""


def _texts(header: GGUFHeader, key: str) -> tuple[str, ...]:
    value = header.get(key)
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def _whole(header: GGUFHeader, key: str) -> int:
    value = header.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
