"""Makes a file again from its derivation and says what is the same: all bytes, or tensor by tensor what differs.

How a derivation looks is `packaging.derivation`'s; making is `pipeline.export`'s.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgepack.errors import ArchiveError, UsageError
from edgepack.file_digest import file_sha256
from edgepack.files.remote import RemoteFile
from edgepack.packaging.archive import is_archive
from edgepack.packaging.derivation import read_derivation
from edgepack.pipeline.contents import contents_of, differences, members_of
from edgepack.pipeline.derivation import FILES, PASSES_FOR, RECIPE, model_files, versions
from edgepack.pipeline.export import run_export
from edgepack.pipeline.export_options import declared_options
from edgepack.pipeline.options import REFINED, WIRE
from edgepack.pipeline.request import ExportRequest
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgepack.packaging.derivation import Derivation, Digested
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.pipeline.located import LocatedModel
    from edgepack.progress import Progress

_OTHER_FILE = "the derivation is of another file"
_SAFE_NAME = re.compile(r"[^/\\\0]+")


@dataclass(frozen=True)
class DerivationCheck:
    """What making a file again gave.

    Attributes:
        sha256: of the GGUF that the file holds, hexadecimal.
        recomputed: of the one that was made again; empty where sources differ and nothing was made.
        certificate_only: the two differ in nothing but the certificate that was added afterwards.
        sources: a line for each source that is not what the derivation says.
        differences: a line for each tensor and metadata key that differs.
        versions: a line for each package that has another version here.
        tensors: how many were compared.
    """

    sha256: str
    recomputed: str
    certificate_only: bool
    sources: tuple[str, ...]
    differences: tuple[str, ...]
    versions: tuple[str, ...]
    tensors: int

    @property
    def same(self) -> bool:
        """Whether the file is what its derivation says: the same bytes, a certificate aside, of the same sources."""
        return not self.sources and (self.sha256 == self.recomputed or self.certificate_only)

    @property
    def first_difference(self) -> str:
        """What differs first: an input, then metadata or a tensor; empty where all is the same."""
        if self.same:
            return ""
        inputs = [f"input {line}" for line in self.sources if not line.startswith(_OTHER_FILE)]
        return next(iter((*inputs, *self.differences, *self.sources)), "the order or padding of the file")


@dataclass(frozen=True)
class Inputs:
    """What the derivation names beside the model, as it lies on this machine; None where it names none.

    Attributes:
        calibration: the text.
        imatrix: the importance matrix.
        adapter: the PEFT folder.
        text: what a wire's gate was judged on.
        factors: low-rank factors that were read.
    """

    calibration: Path | None = None
    imatrix: Path | None = None
    adapter: Path | None = None
    text: Path | None = None
    factors: Path | None = None


def rederive(
    file: Path,
    model: Path,
    inputs: Inputs | None = None,
    trust: TrustPolicy | None = None,
    threads: int | None = None,
    progress: Progress = silent,
    *,
    despite_sources: bool = True,
    located: LocatedModel | None = None,
) -> DerivationCheck:
    """Make `file` again from `model` as its derivation says, in a temporary folder, and compare.

    Args:
        file: an archive, or a GGUF with its derivation beside it.
        model: a second copy of what it was made from: a Hugging Face folder or a GGUF; of one at a URL the folder of
            its small files.
        inputs: what else the derivation names.
        trust: whose archives are taken; the user's trust store by default.
        threads: workers; their number changes no byte.
        progress: told of every stretch of work.
        despite_sources: make it also of sources that are not what the derivation says, to see what that changes.
        located: a model at a URL, whose weights are read once more for their digests.

    Raises:
        UsageError: no derivation, or an input that it names was not given.
        ArchiveError, IntegrityError: the file is not sound.
        CheckFailedError: nobody trusted signed it.
        EdgepackError: whatever the export finds wrong.
    """
    inputs = inputs or Inputs()
    derivation = read_derivation(file, trust)
    files = {role: path for name, role in FILES.items() if (path := getattr(inputs, name)) is not None}
    _check_given(derivation, files)
    if not model.exists():
        raise UsageError(f"model '{model}': no such file or folder")
    remote = () if located is None else located.weights
    sources = tuple(_source_differences(derivation, model, files, remote, progress))
    if sources and not despite_sources:
        said = derivation.subjects[0].sha256
        return DerivationCheck(said, "", False, sources, (), (), len(derivation.tensors))
    with tempfile.TemporaryDirectory(prefix="edgepack-check-") as folder:
        request = _request(derivation, model, files, Path(folder), threads, progress)
        if located is not None:
            original = replace(located.checkpoint, path=Path(request.model))
            request = replace(request, original=original, remote=located.weights)
        made = run_export(request)
        again, others = contents_of(made.output), _others(made.output, made.beside)
    there = contents_of(file)
    if there.sha256 != derivation.subjects[0].sha256:
        sources = (f"{_OTHER_FILE}: it says {derivation.subjects[0].sha256}", *sources)
    adapters = _other_differences(derivation, file, others)
    found = (*differences(there, again), *adapters)
    return DerivationCheck(
        there.sha256, again.sha256, not found and there.sha256 != again.sha256, sources, found,
        tuple(_version_differences(derivation, request)), len(there.tensors),
    )  # fmt: skip


def _check_given(derivation: Derivation, files: Mapping[str, Path]) -> None:
    for name, role in FILES.items():
        named = derivation.of_role(role)
        if named and role not in files:
            raise UsageError(f"the derivation names '{named[0].name}' ({role}): give it with --{name}")


def _source_differences(
    derivation: Derivation, model: Path, files: Mapping[str, Path], remote: Sequence[RemoteFile], progress: Progress
) -> Iterator[str]:
    """A line for each source whose bytes are others here."""
    here: dict[tuple[str, str], Path | RemoteFile] = {("model", name): path for name, path in model_files(model)}
    here |= {("model", file.name): file for file in remote}
    for role, path in files.items():
        if path.is_dir():
            here |= {(role, each.name): each for each in sorted(path.glob("adapter_*"))}
        else:
            here |= {(role, source.name): path for source in derivation.of_role(role)}
    said = {(source.role, source.name): source for source in derivation.sources}
    for key in sorted(here.keys() | said.keys()):
        if key not in here:
            yield f"{key[1]} ({key[0]}): is not here"
        elif key not in said:
            yield f"{key[1]} ({key[0]}): the derivation does not name it"
        elif _digest(here[key], progress) != said[key].sha256:
            yield f"{key[1]} ({key[0]}): has other bytes"


def _digest(source: Path | RemoteFile, progress: Progress) -> str:
    if isinstance(source, RemoteFile):
        return source.sha256("digesting the source", progress)
    return file_sha256(source)


def _request(
    derivation: Derivation,
    model: Path,
    files: Mapping[str, Path],
    folder: Path,
    threads: int | None,
    progress: Progress,
) -> ExportRequest:
    """The export that the derivation tells of, of files under the names that they had."""
    values = {name: _option(name, value) for name, value in derivation.parameters.items() if name not in _BESIDE}
    if PASSES_FOR in derivation.parameters:
        values[PASSES_FOR] = str(derivation.parameters[PASSES_FOR])
    if values.get("refine"):
        values.setdefault("smooth", False)  # derivations before it was an option
    for name, role in FILES.items():
        if role in files:
            values[name] = _stand_in(files[role], folder / role, [*derivation.of_role(role)])
    if RECIPE in derivation.parameters:
        values["recipe"] = folder / "recipe.toml"
        values["recipe"].write_text(str(derivation.parameters[RECIPE]), encoding="utf-8")
    kind = "edgepack" if derivation.target == WIRE else "gguf"
    name = derivation.subjects[0].name
    output = folder / "made" / f"{_checked(PurePosixPath(name).stem)}.{kind}"
    output.parent.mkdir()
    place = _model_stand_in(derivation, model, folder / "model")
    target = None if derivation.target == REFINED else derivation.target
    return ExportRequest(
        place, target, progress=progress, **{**values, "output": output, "threads": threads}
    )  # fmt: skip


_BESIDE = (RECIPE, PASSES_FOR)  # parameters that are no options
_KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,), "texts": (list,), "count": (int,), "number": (int, float), "flag": (bool,), "size": (int, str),
    "switch": (bool,),
}  # fmt: skip


def _option(name: str, value: object) -> Any:
    """A recorded option as `ExportRequest` takes it; raises ArchiveError for one that it does not have."""
    declared = declared_options().get(name)
    if declared is None or declared.value not in _KINDS:
        raise ArchiveError(f"derivation: option '{name}': this edgepack has none of that name")
    fits = isinstance(value, _KINDS[declared.value]) and isinstance(value, bool) == (
        declared.value in ("flag", "switch")
    )
    if not fits or (isinstance(value, list) and not all(isinstance(each, str) for each in value)):
        raise ArchiveError(f"derivation: option '{name}': expected a {declared.value}, got {value!r:.80}")
    return tuple(value) if isinstance(value, list) else value


def _model_stand_in(derivation: Derivation, model: Path, folder: Path) -> Path:
    """The model under the name that it had, by which the export named it: links, no copies."""
    if model.is_file():
        folder.mkdir()
        for name, path in model_files(model):
            (folder / name).symlink_to(path.resolve())
        return folder / model.name
    place = folder / _checked(derivation.model)
    if derivation.repository:
        cached = "models--" + _checked(derivation.repository.replace("/", "--"))
        place = folder / cached / "snapshots" / (derivation.revision or "0" * 40)
    place.mkdir(parents=True)
    for path in model.resolve().iterdir():
        (place / path.name).symlink_to(path)
    return place


def _stand_in(path: Path, folder: Path, named: list[Digested]) -> Path:
    """A file under the name that it had; a folder as it is."""
    if path.is_dir() or not named:
        return path
    folder.mkdir()
    link = folder / _checked(named[0].name)
    link.symlink_to(path.resolve())
    return link


def _checked(name: str) -> str:
    """A name out of a derivation that leads nowhere else."""
    if name in ("", ".", "..") or not _SAFE_NAME.fullmatch(name):
        raise ArchiveError(f"derivation: expected the name of a file, got {name!r:.80}")
    return name


def _others(output: Path, beside: tuple[Path, ...]) -> dict[str, str]:
    """Name → SHA-256 of the other GGUFs that were made."""
    if not is_archive(output):
        return {path.name: file_sha256(path) for path in beside}
    return members_of(output)


def _other_differences(derivation: Derivation, file: Path, again: Mapping[str, str]) -> Iterator[str]:
    """A line for each other file that differs between what is said, what the archive holds, what is made."""
    there = members_of(file) if is_archive(file) else None
    for said in derivation.subjects[1:]:
        if there is not None and there.get(said.name) != said.sha256:
            yield f"'{said.name}': the archive's is not the one that the derivation names"
        if again.get(said.name) != said.sha256:
            yield f"'{said.name}': other bytes"


def _version_differences(derivation: Derivation, request: ExportRequest) -> Iterator[str]:
    here = versions(request)
    for name, version in derivation.versions.items():
        if here.get(name) != version:
            yield f"{name}: {version} there, {here.get(name, 'absent')} here"
