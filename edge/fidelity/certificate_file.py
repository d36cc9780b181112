"""A certificate where it belongs: inside an archive or beside a GGUF, put there, found again and replayed.

Measuring it is `pipeline.certify`'s, what it holds `certificate`'s.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.certificate import MEMBER, Replay, replay
from edgepack.edge.fidelity.scoring import open_candidate, open_stored
from edgepack.edge.fidelity.stored_reference import StoredReference, decode, encode
from edgepack.errors import IntegrityError, UsageError
from edgepack.file_digest import file_sha256, stream_sha256
from edgepack.files.folders import scratch_beside
from edgepack.files.output import atomic_output, move_output
from edgepack.files.source import open_source
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.variant import is_variant
from edgepack.gguf.writer import GGUFWriter
from edgepack.packaging import derivation
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.gguf.types import Value
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.progress import Progress

_BLOCK = 8 << 20
_ARCHIVE_SUFFIX = ".edgepack"


def wire_facts(metadata: Mapping[str, Value]) -> dict[str, Any]:
    """How a file of the wire was made: host, scale, trellis, digest of the calibration text; empty for any other."""
    prefix = keys.WIRE
    return {key.removeprefix(prefix): value.value for key, value in metadata.items() if key.startswith(prefix)}


def certificate_path(gguf: Path) -> Path:
    """Where the certificate of a GGUF that is in no archive lies: beside it."""
    return gguf.with_suffix(".edgeref")


def with_metadata(path: Path, added: Mapping[str, Value], out: Path, *, instead_of: str | None = None) -> str:
    """Copy a GGUF with more metadata, tensors bit for bit; gives the copy's SHA-256 in hexadecimal.

    Args:
        path: a whole GGUF.
        added: keys and values; they replace those of the same key.
        out: the copy.
        instead_of: the beginning of keys that are left out, added ones excepted.

    Raises:
        GGUFError: `path` is not a whole GGUF.
    """
    header = read_header(path)
    tensors = sorted(header.tensors, key=lambda info: info.offset)
    with open_source(path) as source, out.open("w+b") as stream:
        kept = {
            key: value for key, value in header.metadata.items() if instead_of is None or not key.startswith(instead_of)
        }
        writer = GGUFWriter(stream, {**kept, **added}, tensors)
        writer.write_header()
        for info in tensors:
            source.seek(header.data_start + info.offset)
            left = info.nbytes
            while left:
                block = source.read(min(left, _BLOCK))
                writer.write(info.name, block)
                left -= len(block)
        writer.close()
        stream.seek(0)
        return stream_sha256(stream).hex()


def read_certificate(path: Path, trust: TrustPolicy | None = None) -> StoredReference:
    """The certificate of an archive, or the one beside a GGUF.

    Raises:
        UsageError: there is none.
        ArchiveError, IntegrityError: it is not sound.
        CheckFailedError: nobody trusted signed it.
    """
    from edgepack.packaging.archive import is_archive, open_archive

    if not path.is_file():
        raise UsageError(f"'{path}': no such file")
    if is_archive(path):
        with open_archive(path, trust) as archive:
            if all(member.name != MEMBER for member in archive.members):
                raise UsageError(f"'{path}' holds no certificate: give --reference, or make one with edgepack certify")
            return decode(archive.read_member(MEMBER), f"{path}: {MEMBER}")
    beside = certificate_path(path)
    if not beside.is_file():
        raise UsageError(f"'{path}': no certificate '{beside.name}' beside it: give --reference")
    return open_stored(beside).stored


def run_replay(path: Path, options: ScoringOptions, progress: Progress = silent) -> tuple[Replay, StoredReference]:
    """Replay a file's certificate on this machine; needs neither the original nor its text.

    Raises:
        UsageError: there is no certificate.
        IntegrityError: it belongs to another file.
    """
    stored = read_certificate(path, options.trust)
    with closing(open_candidate(path, replace(options, ctx=int(stored.tokens.shape[1])), 0, progress)) as candidate:
        got = file_sha256(candidate.path)
        expected = stored.facts.get("gguf_sha256")
        if expected != got:
            raise IntegrityError(f"'{path}': the certificate was made for a GGUF with SHA-256 {expected}, got {got}")
        return replay(stored, candidate, progress), stored


def places_of_copy(file: Path, output: Path | None, trust: TrustPolicy | None) -> Iterator[Path]:
    """Where the files of a copy with other metadata (`deliver_noted`) will come to lie; nowhere without an output."""
    if output is None:
        return
    yield output
    if output.suffix != _ARCHIVE_SUFFIX:
        if has_certificate(file, trust):
            yield certificate_path(output)
        if has_derivation(file):
            yield derivation.beside_path(output)


def deliver_noted(
    file: Path,
    model: Path,
    noted: Mapping[str, Value],
    instead_of: str,
    output: Path,
    trust: TrustPolicy | None,
    progress: Progress,
) -> int:
    """Write a copy of a file whose metadata say something more, with its certificate and what else it holds.

    Args:
        file: the archive or GGUF that was named.
        model: its GGUF.
        noted: what is said, by key.
        instead_of: the beginning of keys that are left out, those said excepted.
        output: `.edgepack` for an archive; any other name gets the GGUF.
        trust: whose archives are taken.
        progress: told of bytes.

    Returns:
        The copy's length.
    """
    with scratch_beside(output) as folder:
        copy = folder / f"{file.stem}.gguf"
        with_metadata(model, noted, copy, instead_of=instead_of)
        deliver(file, copy, carried_certificate(file, model, copy, trust), output, trust, progress)
    return output.stat().st_size


def _certified(path: Path, model: Path) -> None:
    """Let a derivation speak of the model that now has its certificate, and of what it was before."""
    said = derivation.decode(path.read_bytes(), path.name)
    before, *others = said.subjects
    subjects = (replace(before, sha256=file_sha256(model)), *others)
    first = said.certified_from or before.sha256
    path.write_bytes(derivation.encode(replace(said, subjects=subjects, certified_from=first)))


def has_certificate(candidate: Path, trust: TrustPolicy | None = None) -> bool:
    """Whether an archive holds a certificate, or one lies beside a GGUF."""
    from edgepack.packaging.archive import is_archive, open_archive

    if not is_archive(candidate):
        return certificate_path(candidate).is_file()
    with open_archive(candidate, trust) as archive:
        return any(member.name == MEMBER for member in archive.members)


def carried_certificate(candidate: Path, before: Path, model: Path, trust: TrustPolicy | None) -> Path | None:
    """The candidate's certificate, written beside `model`, whose metadata alone differ: what it answers is the same.

    Args:
        candidate: the archive or GGUF that was named.
        before: its GGUF.
        model: the same with other metadata.
        trust: whose archives are taken.

    Returns:
        Where it lies; None where there is none, or it speaks of another file.
    """
    if not has_certificate(candidate, trust):
        return None
    stored = read_certificate(candidate, trust)
    was = file_sha256(before)
    if stored.facts.get("gguf_sha256") != was:
        return None
    first = stored.facts.get("certified_gguf_sha256", was)
    facts = {**stored.facts, "gguf_sha256": file_sha256(model), "certified_gguf_sha256": first}
    path = model.with_name(MEMBER)
    path.write_bytes(encode(replace(stored, facts=facts)))
    return path


def has_derivation(candidate: Path) -> bool:
    """Whether a derivation lies beside a plain GGUF, speaks of it, and can be carried on to its certified copy."""
    from edgepack.packaging.archive import is_archive

    if not derivation.beside_path(candidate).is_file() or is_archive(candidate):
        return False
    if is_variant(read_header(candidate)):  # a variant is certified as what it decodes to
        return False
    return derivation.neighbour_of(candidate)[0] is not None


def _derivation_beside(candidate: Path, model: Path) -> Path | None:
    """A copy, beside the certified model, of the derivation that lies beside a plain GGUF; it speaks of the model."""
    if not has_derivation(candidate):
        return None
    path = model.with_name(derivation.MEMBER)
    path.write_bytes(derivation.beside_path(candidate).read_bytes())
    _certified(path, model)
    return path


def deliver(
    candidate: Path, model: Path, certificate: Path | None, output: Path, trust: TrustPolicy | None, progress: Progress
) -> None:
    """Put model and certificate where they belong, and with them what else the candidate's archive holds.

    Without a certificate none goes with the model, the archive's own neither: it was another file's.
    """
    from edgepack.packaging.archive import is_archive, open_archive
    from edgepack.packaging.pack import pack_archive

    said = _derivation_beside(candidate, model)
    if output.suffix != _ARCHIVE_SUFFIX:
        move_output(model, output)
        if certificate is not None:
            with atomic_output(certificate_path(output)) as stream:
                stream.write(certificate.read_bytes())
        if said is not None:
            with atomic_output(derivation.beside_path(output)) as stream:
                stream.write(said.read_bytes())
        return
    others = [] if said is None else [said]
    if is_archive(candidate):
        with open_archive(candidate, trust) as archive:
            for member in archive.members:
                if member is archive.main or member.name == MEMBER:
                    continue
                path = model.parent / "members" / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as stream:
                    for _chunk, content in archive.iterate(member):
                        stream.write(content.tobytes())
                if member.name.endswith(derivation.SUFFIX):
                    _certified(path, model)
                others.append(path)
    own = [] if certificate is None else [certificate]
    pack_archive(model, output, include=[*own, *others], progress=progress)
