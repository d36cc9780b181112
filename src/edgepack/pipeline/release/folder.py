"""Writes a release: a folder that appears whole, with everything that a publisher uploads.

What the card says is `card`'s, what is known `facts`'.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgepack.errors import CheckFailedError
from edgepack.file_digest import SUMS, write_sha256sums
from edgepack.files.folders import folder_output
from edgepack.packaging import signing
from edgepack.packaging.archive import open_archive
from edgepack.packaging.derivation import MEMBER as DERIVATION
from edgepack.packaging.derivation import encode
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.packaging.trust import openssf
from edgepack.packaging.verify import verify_archive
from edgepack.pipeline.release.card import model_card, modelfile
from edgepack.pipeline.release.facts import read_facts
from edgepack.pipeline.release.plots import plots
from edgepack.progress import silent
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.pipeline.release.facts import ReleaseFacts
    from edgepack.progress import Progress

_SIGNATURE, _PUBLIC = "SHA256SUMS.sig", "publisher.pub"


@dataclass(frozen=True)
class ReleaseRequest:
    """What to publish.

    Attributes:
        archive: sound, and not wrongly signed.
        folder: must not be there, or be empty.
        plain: put the GGUF itself in too.
        key: signs the archive and the sums; None leaves them as they are.
        licence: a file with the licence's text; by default the archive's own.
        base: the original's repository on the hub, where the archive does not say it.
        trust: whose archives are taken; the user's trust store by default.
        openssf_key: signs the whole folder in OpenSSF's format, into `model.sig`.
    """

    archive: Path
    folder: Path
    plain: bool = False
    key: Path | None = None
    licence: Path | None = None
    base: str | None = None
    trust: TrustPolicy | None = None
    openssf_key: Path | None = None


@dataclass(frozen=True)
class Released:
    """What lies in the folder.

    Attributes:
        folder: itself.
        files: name → SHA-256, hexadecimal; as SHA256SUMS has it.
        bytes: of all files.
        key: that signed, hexadecimal; empty for none.
        missing: a line each on what the archive did not have.
    """

    folder: Path
    files: dict[str, str]
    bytes: int
    key: str
    missing: tuple[str, ...]


def release(request: ReleaseRequest, progress: Progress = silent) -> Released:
    """Write the release of an archive.

    Raises:
        UsageError: the folder is in the way, or a key or the licence cannot be read.
        CheckFailedError: the archive is damaged or wrongly signed; nothing is written.
        EdgepackError: whatever opening or restoring finds wrong; nothing is left behind.
    """
    _check_sound(request, progress)
    inputs = [path for path in (request.archive, request.key, request.licence) if path is not None]
    with folder_output(request.folder, inputs=inputs) as scratch:
        key = _copy_archive(request, scratch)
        stem = request.archive.stem
        with open_archive(request.archive, request.trust) as archive:
            facts = read_facts(archive, stem)
            if facts.licence_member and request.licence is None:
                (scratch / "LICENSE").write_bytes(archive.read_member(facts.licence_member))
        if request.base is not None:
            facts = replace(facts, base=request.base)
        if request.licence is not None:
            (scratch / "LICENSE").write_text(read_text(request.licence), encoding="utf-8")
        _restore(request, facts, scratch, progress)
        _write_texts(facts, scratch)
        if request.key is not None:
            (scratch / _PUBLIC).write_bytes(signing.public_pem(signing.load_private_key(request.key)))
        named = sorted(path.name for path in scratch.iterdir())
        extra = [SUMS, *([_SIGNATURE] if key else []), *([openssf.SIGNATURE] if request.openssf_key else [])]
        card = model_card(facts, sorted([*named, "README.md", *extra]), plain=request.plain, key=key)
        (scratch / "README.md").write_text(card, encoding="utf-8")
        sums = _write_sums(scratch, request.key)
        if request.openssf_key is not None:
            openssf.sign(scratch, request.openssf_key, scratch / openssf.SIGNATURE)
        total = sum(path.stat().st_size for path in scratch.iterdir())
        missing = tuple(_missing(facts, scratch))
    return Released(request.folder, sums, total, key, missing)


def _check_sound(request: ReleaseRequest, progress: Progress) -> None:
    with open_archive(request.archive, request.trust):
        problems = verify_archive(request.archive, progress=progress)
    if problems:
        raise CheckFailedError(f"'{request.archive}': {problems[0].where}: {problems[0].what}")


def _copy_archive(request: ReleaseRequest, folder: Path) -> str:
    """The archive, signed where a key is given; gives the key's public half in hexadecimal, or nothing."""
    target = folder / request.archive.name
    if request.key is not None:
        return signing.sign_archive(request.archive, request.key, target)
    shutil.copyfile(request.archive, target)
    return ""


def _restore(request: ReleaseRequest, facts: ReleaseFacts, folder: Path, progress: Progress) -> None:
    """The archive's other GGUFs, and the model's own where it is wanted."""
    for name in facts.others:
        unpack_archive(
            request.archive, folder / PurePosixPath(name).name, member=name, trust=request.trust, progress=progress
        )
    if not request.plain:
        return
    target = folder / f"{facts.stem}.gguf"
    if not facts.variant:
        unpack_archive(request.archive, target, trust=request.trust, progress=progress)
        return
    from edgepack.edge.install.native import plan_native, write_native

    variant = folder / ".variant.gguf"
    unpack_archive(request.archive, variant, trust=request.trust, progress=progress)
    write_native(plan_native(variant, None), target, progress=progress)
    variant.unlink()


def _write_texts(facts: ReleaseFacts, folder: Path) -> None:
    """Configuration, Modelfile, derivation, pictures."""
    (folder / "config.json").write_text(json.dumps(_configuration(facts), indent=1) + "\n", encoding="utf-8")
    (folder / "Modelfile").write_text(modelfile(facts), encoding="utf-8")
    if facts.derivation is not None:
        (folder / DERIVATION).write_bytes(encode(facts.derivation))
    if facts.certificate is not None:
        for name, picture in plots(facts.certificate).items():
            (folder / name).write_text(picture, encoding="utf-8")


_SIZES = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}  # fmt: skip


def _configuration(facts: ReleaseFacts) -> dict[str, object]:
    """What hubs read of a model, in transformers' words, out of the header."""
    sizes = {name: facts.metadata.get(f"{facts.architecture}.{key}") for name, key in _SIZES.items()}
    tokens = facts.metadata.get("tokenizer.ggml.tokens")
    quantised = {"quant_method": "gguf", "types": {share.type: share.tensors for share in facts.types}}
    return {
        "model_type": facts.architecture,
        **{name: value for name, value in sizes.items() if value is not None},
        "vocab_size": len(tokens) if isinstance(tokens, list) else None,
        "quantization_config": quantised,
    }


def _write_sums(folder: Path, key: Path | None) -> dict[str, str]:
    """SHA256SUMS of every file, and with a key its signature, which OpenSSL checks."""
    sums = write_sha256sums(folder)
    if key is not None:
        (folder / _SIGNATURE).write_bytes(signing.load_private_key(key).sign((folder / SUMS).read_bytes()))
    return sums


def _missing(facts: ReleaseFacts, folder: Path) -> Iterator[str]:
    if facts.certificate is None:
        yield "no certificate: the card says that nothing was measured (edgepack certify)"
    if facts.derivation is None:
        yield "no derivation: the card cannot say where it comes from (export into an archive)"
    if not facts.licence and not (folder / "LICENSE").is_file():
        yield "no licence: give its text with --license"
    if not facts.base:
        yield "no repository of the original is known: --base-model ORG/NAME names it"
