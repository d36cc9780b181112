"""Where a file comes from, as an in-toto Statement that carries SLSA provenance: its bytes, checked both ways.

Formats: in-toto Statement v1 (https://in-toto.io/Statement/v1) and SLSA provenance v1
(https://slsa.dev/provenance/v1). A derivation says nothing of the machine that made it and no time, so that the same
export makes the same bytes. Who gathers the digests is `pipeline.derivation`'s business, who signed the archive's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import ArchiveError, UsageError
from edgepack.file_digest import file_sha256
from edgepack.files.source import as_object, read_small
from edgepack.packaging.archive import is_archive, open_archive
from edgepack.packaging.trust.policy import machine_policy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.packaging.archive import Archive
    from edgepack.packaging.trust.policy import TrustPolicy

SUFFIX = ".intoto.json"
MEMBER = f"derivation{SUFFIX}"
MAX_BYTES = 16 << 20
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:edgepack:export:v1"  # the project has no domain; a URN names it all the same
BUILDER = "urn:edgepack:builder"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Digested:
    """A file: its name (no path of any machine), SHA-256 in hexadecimal, and what it was for.

    Attributes:
        name: relative to the folder that it was read from.
        sha256: of its bytes.
        role: `model`, `calibration`, `importance`, `adapter`, `recipe`, `text`; empty for what was made.
        uri: where it can be had, of a hub's file; empty where nobody knows.
    """

    name: str
    sha256: str
    role: str = ""
    uri: str = ""


@dataclass(frozen=True)
class Derivation:
    """How a file was made.

    Attributes:
        subjects: what was made: the GGUF, then adapters.
        model: the name that the source goes by.
        repository: on the hub, such as `org/name`; empty where the source is no snapshot of one.
        revision: its commit; empty likewise.
        target: of the export, such as `gguf-q5km`.
        parameters: option of `export` → value; everything that a second export needs, files excepted.
        goal: what was asked for where a search found target or scale; for people.
        sources: every file that was read.
        tensors: name → type, in file order.
        versions: package → version.
        certified_from: SHA-256 of the GGUF before a certificate was put into its metadata; empty for none.
    """

    subjects: tuple[Digested, ...]
    model: str
    repository: str
    revision: str
    target: str
    parameters: Mapping[str, Any]
    goal: Mapping[str, Any]
    sources: tuple[Digested, ...]
    tensors: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)
    certified_from: str = ""

    @property
    def statement(self) -> dict[str, Any]:
        """The in-toto Statement as JSON has it."""
        details: dict[str, Any] = {"builder": {"id": BUILDER, "version": dict(self.versions)}}
        if self.certified_from:
            before = {"name": "the same file without its certificate", "digest": {"sha256": self.certified_from}}
            details["byproducts"] = [before]
        external = {
            "model": self.model, "repository": self.repository, "revision": self.revision, "target": self.target,
            "options": dict(self.parameters), "goal": dict(self.goal),
        }  # fmt: skip
        return {
            "_type": STATEMENT,
            "subject": [_descriptor(each) for each in self.subjects],
            "predicateType": PREDICATE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": external,
                    "internalParameters": {"tensors": dict(self.tensors)},
                    "resolvedDependencies": [_descriptor(each) for each in self.sources],
                },
                "runDetails": details,
            },
        }

    def of_role(self, role: str) -> tuple[Digested, ...]:
        """The sources that were read as `role`."""
        return tuple(each for each in self.sources if each.role == role)


def _descriptor(file: Digested) -> dict[str, Any]:
    """An in-toto ResourceDescriptor."""
    told: dict[str, Any] = {"name": file.name, "digest": {"sha256": file.sha256}}
    if file.uri:
        told["uri"] = file.uri
    if file.role:
        told["annotations"] = {"role": file.role}
    return told


def encode(derivation: Derivation) -> bytes:
    """The statement as UTF-8 JSON, always the same for the same derivation."""
    return json.dumps(derivation.statement, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def decode(raw: bytes, where: str) -> Derivation:
    """The derivation in a statement.

    Args:
        raw: at most MAX_BYTES.
        where: names the file in messages.

    Raises:
        ArchiveError: not such a statement; the text names the field.
    """
    try:
        statement = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{where}: expected JSON: {error}") from None
    fields = _Fields(statement, where)
    fields.must_be("_type", STATEMENT)
    fields.must_be("predicateType", PREDICATE)
    build = fields.object("predicate").object("buildDefinition")
    build.must_be("buildType", BUILD_TYPE)
    details = fields.object("predicate").object("runDetails")
    asked = build.object("externalParameters")
    before = details.files("byproducts") if "byproducts" in details.value else ()
    return Derivation(
        fields.files("subject"), asked.text("model"), asked.text("repository"), asked.text("revision"),
        asked.text("target"), asked.object("options").value, asked.object("goal").value,
        build.files("resolvedDependencies"), build.object("internalParameters").object("tensors").texts(),
        details.object("builder").object("version").texts(), before[0].sha256 if before else "",
    )  # fmt: skip


class _Fields:
    """An object of the statement; what is asked of it is checked."""

    def __init__(self, value: Any, where: str) -> None:
        self.value = as_object(value, where, ArchiveError)
        self._where = where

    def object(self, key: str) -> _Fields:
        return _Fields(self.value.get(key), f"{self._where}: {key}")

    def text(self, key: str) -> str:
        value = self.value.get(key)
        if not isinstance(value, str):
            raise ArchiveError(f"{self._where}: {key}: expected a text, got {value!r:.80}")
        return value

    def texts(self) -> dict[str, str]:
        return {key: self.text(key) for key in self.value}

    def must_be(self, key: str, expected: str) -> None:
        if self.value.get(key) != expected:
            raise ArchiveError(f"{self._where}: {key}: expected '{expected}', got {self.value.get(key)!r:.120}")

    def files(self, key: str) -> tuple[Digested, ...]:
        value = self.value.get(key)
        if not isinstance(value, list):
            raise ArchiveError(f"{self._where}: {key}: expected a list, got {type(value).__name__}")
        return tuple(self._file(each, f"{self._where}: {key}[{number}]") for number, each in enumerate(value))

    @staticmethod
    def _file(value: Any, where: str) -> Digested:
        fields = _Fields(value, where)
        digest = fields.object("digest").text("sha256")
        if not _SHA256.fullmatch(digest):
            raise ArchiveError(f"{where}: digest.sha256: expected 64 hexadecimal digits, got {digest!r:.80}")
        role = fields.object("annotations").text("role") if "annotations" in fields.value else ""
        return Digested(fields.text("name"), digest, role, fields.text("uri") if "uri" in fields.value else "")


def beside_path(gguf: Path) -> Path:
    """Where the derivation of a GGUF that is in no archive lies."""
    return gguf.with_name(f"{gguf.stem}{SUFFIX}")


def neighbour_of(gguf: Path) -> tuple[Derivation | None, str]:
    """The derivation beside a GGUF, if it speaks of that file; else None, and why not ("" where there is none)."""
    beside = beside_path(gguf)
    if not beside.is_file():
        return None, ""
    try:
        said = decode(read_small(beside, ArchiveError, MAX_BYTES), f"'{beside.name}'")
    except ArchiveError as error:
        return None, f"it is no derivation of edgepack's ({error})"
    if (digest := file_sha256(gguf)) not in {each.sha256 for each in said.subjects[:1]}:
        return None, f"it speaks of another file than '{gguf.name}', with SHA-256 {digest}"
    return said, ""


def read_derivation(file: Path, trust: TrustPolicy | None = None) -> Derivation:
    """The derivation in an archive, or the one beside a GGUF.

    Args:
        file: the archive or GGUF.
        trust: whose archives are taken; the user's trust store by default.

    Raises:
        UsageError: no such file, or it has none.
        ArchiveError, IntegrityError: it is not sound.
        CheckFailedError: nobody trusted signed it.
    """
    if not file.is_file():
        raise UsageError(f"'{file}': no such file")
    if is_archive(file):
        with open_archive(file, trust) as archive:
            return derivation_of(archive)
    (machine_policy() if trust is None else trust).check_plain(file)
    beside = beside_path(file)
    if not beside.is_file():
        raise UsageError(f"'{file}': no derivation '{beside.name}' beside it: export with --provenance writes one")
    return decode(read_small(beside, ArchiveError, MAX_BYTES), f"'{beside}'")


def derivation_of(archive: Archive) -> Derivation:
    """The derivation among an archive's members; raises as `read_derivation`."""
    name = next((member.name for member in archive.members if member.name.endswith(SUFFIX)), None)
    if name is None:
        raise UsageError(f"'{archive.path}' holds no derivation: it was not exported into an archive")
    if archive.member(name).bytes > MAX_BYTES:
        raise ArchiveError(f"'{archive.path}': {name}: expected at most {MAX_BYTES} bytes")
    return decode(archive.read_member(name), f"'{archive.path}': {name}")
