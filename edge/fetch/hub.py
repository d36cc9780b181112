"""A checkpoint from the Hugging Face hub through its own library, every file held against the hub's digests.

The library resumes, and honours HF_ENDPOINT, HF_TOKEN and proxies. Pickles and code are not taken unless asked for.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import ArchiveError, DependencyError, IntegrityError, NetworkError, ResourceError, UsageError
from edgepack.file_digest import file_sha256
from edgepack.files.source import open_source
from edgepack.packaging.index.member_names import check_member_name
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HUB_PREFIX = "hf:"
# Weights without code, what a tokenizer needs, how the model is described. A `*` does not cross folders.
CHECKPOINT_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt",
    "merges.txt", "vocab.bpe", "additional_chat_templates/*.jinja", "*_*/config.json", "*_*/model.safetensors",
    "LICENSE*", "NOTICE*", "README.md",
)  # fmt: skip
_SOURCE = re.compile(r"hf:([\w.-]+/[\w.-]+)((?:/[^@]+)?)(?:@(.+))?")


@dataclass(frozen=True)
class HubSource:
    """`hf:ORG/NAME[/FILE][@REVISION]`, taken apart; "" for no file, None for the default revision."""

    repository: str
    file: str
    revision: str | None


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it: SHA-256 for large files, git's SHA-1 of the blob for the others; hexadecimal."""

    name: str
    n_bytes: int
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class HubFiles:
    """What was fetched: the folder, the commit, the files with their SHA-256 in hexadecimal."""

    folder: Path
    revision: str
    sha256: dict[str, str]
    bytes: int

    def json(self) -> dict[str, object]:
        """The object that `edgepack fetch hf:… --json` prints."""
        return {"output": str(self.folder), "bytes": self.bytes, "revision": self.revision, "sha256": self.sha256}


def parse_hub_source(text: str) -> HubSource:
    """Take `hf:…` apart.

    Raises:
        UsageError: it has another form.
    """
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise UsageError(f"expected hf:ORG/NAME, with /FILE and @REVISION behind it where wanted, got {text!r}")
    return HubSource(match[1], match[2].lstrip("/"), match[3])


def chosen(files: Sequence[HubFile], source: HubSource, include: Sequence[str]) -> list[HubFile]:
    """The files to fetch: the one that is named, or those of a checkpoint and what `include` matches besides.

    Raises:
        UsageError: there is none.
        NetworkError: a name that leaves the folder.
    """
    patterns = (source.file,) if source.file else (*CHECKPOINT_FILES, *include)
    found = [file for file in files if any(_matches(file.name, pattern) for pattern in patterns)]
    if not found or not (source.file or any(file.name.endswith(".safetensors") for file in found) or include):
        names = ", ".join(sorted(file.name for file in files)[:12])
        raise UsageError(f"hf:{source.repository}: no {source.file or 'safetensors'} among its files ({names})")
    try:
        for file in found:
            check_member_name(file.name)
    except ArchiveError as error:
        raise NetworkError(f"hf:{source.repository}: {error}") from None
    return found


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def fetch_from_hub(
    text: str, folder: Path | None, *, include: Sequence[str], note: Callable[[str], object]
) -> HubFiles:
    """Fetch what `text` names into `folder` (by default one of the repository's name, here).

    Args:
        text: `hf:ORG/NAME[/FILE][@REVISION]`.
        folder: made where it is absent; what an interrupted fetch left there is continued.
        include: patterns of further files.
        note: told in a line what is fetched.

    Raises:
        DependencyError: huggingface_hub is not installed.
        NetworkError: the hub refuses or cannot be reached.
        IntegrityError: a file differs from the hub's digest; it is removed.
        ResourceError: the disk is too small.
    """
    source = parse_hub_source(text)
    target = folder if folder is not None else Path(source.repository.rsplit("/", 1)[1])
    library = _library()
    with _hub_errors(source):
        revision, files = _listing(library, source)
    files = chosen(files, source, include)
    total = sum(file.n_bytes for file in files)
    note(f"hf:{source.repository} at {revision[:12]}: {len(files)} files, {format_size(total)}, into {target}")
    target.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(target).free < total:
        raise ResourceError(f"'{target}': needs {format_size(total)}, disk has less free")
    digests = {file.name: _fetch_file(library, source, revision, file, target) for file in files}
    return HubFiles(target, revision, digests, total)


def _library() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise DependencyError("hf: needs the package huggingface_hub: pip install huggingface_hub") from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    return huggingface_hub


@contextmanager
def _hub_errors(source: HubSource) -> Iterator[None]:
    """What the library raises, as one line; its HTTP errors are OSErrors, its checks of names ValueErrors."""
    errors: Any = import_module("huggingface_hub.errors")

    try:
        yield
    except (errors.EntryNotFoundError, errors.HTTPError, OSError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise NetworkError(f"hf:{source.repository}: {lines[0] if lines else type(error).__name__}") from None


def _listing(library: Any, source: HubSource) -> tuple[str, list[HubFile]]:
    info = library.HfApi().model_info(source.repository, revision=source.revision, files_metadata=True)
    files = [
        HubFile(entry.rfilename, entry.size or 0, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in info.siblings or ()
    ]
    return str(info.sha), files


def _fetch_file(library: Any, source: HubSource, revision: str, file: HubFile, folder: Path) -> str:
    with _hub_errors(source):
        name = library.hf_hub_download(source.repository, file.name, revision=revision, local_dir=folder)
    path = Path(name)
    digest = file_sha256(path)
    if not _is_right(path, digest, file):
        path.unlink(missing_ok=True)
        raise IntegrityError(f"'{path}': differs from the digest that hf:{source.repository} lists; it was removed")
    return digest


def _is_right(path: Path, sha256: str, file: HubFile) -> bool:
    if file.sha256 is not None:
        return sha256 == file.sha256
    if file.blob_id is None:
        return path.stat().st_size == file.n_bytes
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)  # git's name of the content
    with open_source(path) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            blob.update(block)
    return blob.hexdigest() == file.blob_id
