"""Makes a certificate and puts it where it belongs; finds it again on the device and replays it.

What a certificate holds is `edge.fidelity.certificate`'s, how an archive holds members `packaging`'s.
"""

from __future__ import annotations

import platform
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgepack.atomic_file import atomic_output, check_output
from edgepack.edge.fidelity.certificate import DEFAULT_TOKENS, MEMBER, Replay, replay, small_form, store
from edgepack.edge.fidelity.outcome import figures, finite
from edgepack.edge.fidelity.stored_reference import StoredReference, decode, encode
from edgepack.edge.fidelity.validate import validate
from edgepack.errors import IntegrityError, UsageError
from edgepack.file_digest import file_sha256, stream_sha256
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.writer import GGUFWriter
from edgepack.pipeline.fidelity import (
    choose_chunking,
    measure_floor,
    open_candidate,
    open_reference,
    open_stored,
    sample_text,
)
from edgepack.pipeline.text import text_to_score
from edgepack.progress import silent
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.gguf.types import Value
    from edgepack.pipeline.fidelity import ScoringOptions
    from edgepack.progress import Progress

_BLOCK = 8 << 20
_ARCHIVE_SUFFIX = ".edgepack"


@dataclass(frozen=True)
class Certified:
    """What certifying gave.

    Attributes:
        output: the archive or GGUF that holds the proof.
        bytes: its length.
        certificate_bytes: of the stored reference.
        tokens: scored positions that can be replayed.
        base_logits_bytes: what llama.cpp's tool would store for the same positions.
        figures: of the whole text.
    """

    output: Path
    bytes: int
    certificate_bytes: int
    tokens: int
    base_logits_bytes: int
    figures: Mapping[str, Any]


def certify(
    candidate_path: Path,
    reference_path: Path,
    text_path: Path | None,
    output: Path,
    options: ScoringOptions,
    stored_tokens: int = DEFAULT_TOKENS,
    progress: Progress = silent,
) -> Certified:
    """Measure a file and pack it with the proof: figures in the GGUF's metadata, replayable answers beside it.

    Signatures of an archive do not carry over to the new one: sign after certifying.

    Args:
        candidate_path: a GGUF or an `.edgepack`.
        reference_path: the original.
        text_path: what is scored; None is the reference's own samples.
        output: `.edgepack` for an archive; any other name gets the GGUF and, beside it, the certificate.
        options: how text is scored.
        stored_tokens: scored positions to store, rounded up to whole chunks.
        progress: of every stretch of work.

    Raises:
        EdgepackError: whatever opening, scoring or packing finds wrong; nothing is left behind.
    """
    check_output(output)
    text = None if text_path is None else text_to_score(text_path)
    with ExitStack() as opened:
        candidate = opened.enter_context(closing(open_candidate(candidate_path, options, progress=progress)))
        reference = opened.enter_context(closing(open_reference(reference_path, options)))
        text = text or sample_text(reference)
        chunking = choose_chunking(reference, text.text, options)
        (found,) = validate(reference, [candidate], text.text, chunking, progress)
        floor = measure_floor(reference, text.text, chunking, progress) if options.floor else ()
        measured = finite(figures(found.statistics))
        facts = {
            "figures": measured,
            "noise_floor": {same.candidate: finite(figures(same.statistics)) for same in floor},
            "reference": reference.label,
            "text": text.origin,
            "text_sha256": text.sha256,
            "versions": {"edgepack": __version__, "python": platform.python_version()},
        }
        if wire := wire_facts(read_header(candidate.path).metadata):
            facts["wire"] = wire
        short = _small_facts(facts)
        each = chunking.ctx - 1 - chunking.ctx // 2
        few = replace(chunking, max_chunks=max(1, -(-stored_tokens // each)))
        with TemporaryDirectory(prefix=".edgepack-", dir=output.parent) as folder:
            model = Path(folder) / f"{candidate_path.stem}.gguf"
            facts["gguf_sha256"] = with_metadata(candidate.path, {keys.CERTIFICATE: small_form(short)}, model)
            stored = store(reference, candidate, text.text, few, facts, progress)
            certificate = Path(folder) / MEMBER
            certificate.write_bytes(encode(stored))
            size = certificate.stat().st_size
            _deliver(candidate_path, model, certificate, output, progress)
    positions = len(stored.candidate_top)
    base = positions * 2 * (2 * ((stored.reference.vocabulary + 1) // 2) + 4)
    return Certified(output, output.stat().st_size, size, positions, base, measured)


def _small_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("tokens", "top1_agreement", "top1_interval", "mean_kl", "perplexity")
    return {
        "figures": {key: facts["figures"][key] for key in kept},
        **{key: facts[key] for key in ("reference", "text", "text_sha256", "versions", "wire") if key in facts},
    }


def wire_facts(metadata: Mapping[str, Value]) -> dict[str, Any]:
    """How a file of the wire was made: host, scale, trellis, digest of the calibration text; empty for any other."""
    prefix = keys.WIRE
    return {key.removeprefix(prefix): value.value for key, value in metadata.items() if key.startswith(prefix)}


def _deliver(candidate: Path, model: Path, certificate: Path, output: Path, progress: Progress) -> None:
    """Put model and certificate where they belong."""
    from edgepack.packaging.archive import is_archive, open_archive
    from edgepack.packaging.pack import pack_archive

    if output.suffix != _ARCHIVE_SUFFIX:
        model.replace(output)
        with atomic_output(certificate_path(output)) as stream:
            stream.write(certificate.read_bytes())
        return
    others = []
    if is_archive(candidate):
        with open_archive(candidate) as archive:
            for member in archive.members:
                if member is archive.main or member.name == MEMBER:
                    continue
                path = model.parent / "members" / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as stream:
                    for _chunk, content in archive.iterate(member):
                        stream.write(content.tobytes())
                others.append(path)
    pack_archive(model, output, include=[certificate, *others], progress=progress)


def certificate_path(gguf: Path) -> Path:
    """Where the certificate of a GGUF that is in no archive lies: beside it."""
    return gguf.with_suffix(".edgeref")


def with_metadata(path: Path, added: Mapping[str, Value], out: Path) -> str:
    """Copy a GGUF with more metadata, tensors bit for bit; gives the copy's SHA-256 in hexadecimal.

    Raises:
        GGUFError: `path` is not a whole GGUF.
    """
    header = read_header(path)
    tensors = sorted(header.tensors, key=lambda info: info.offset)
    with path.open("rb") as source, out.open("w+b") as stream:
        writer = GGUFWriter(stream, {**header.metadata, **added}, tensors)
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


def read_certificate(path: Path) -> StoredReference:
    """The certificate of an archive, or the one beside a GGUF.

    Raises:
        UsageError: there is none.
        ArchiveError, IntegrityError: it is not sound.
    """
    from edgepack.packaging.archive import is_archive, open_archive

    if not path.is_file():
        raise UsageError(f"'{path}': no such file")
    if is_archive(path):
        with open_archive(path) as archive:
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
    stored = read_certificate(path)
    with closing(open_candidate(path, replace(options, ctx=int(stored.tokens.shape[1])), 0, progress)) as candidate:
        got = file_sha256(candidate.path)
        expected = stored.facts.get("gguf_sha256")
        if expected != got:
            raise IntegrityError(f"'{path}': the certificate was made for a GGUF with SHA-256 {expected}, got {got}")
        return replay(stored, candidate, progress), stored
