"""Gathers what an export was made from, digest by digest, and writes it down as a derivation.

How a derivation looks is `packaging.derivation`'s; making one again and comparing, `pipeline.rederive`'s.
"""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from functools import cached_property
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import CheckpointError
from edgepack.export.weight_files import ORDER
from edgepack.file_digest import file_sha256
from edgepack.files.source import FileState, check_unchanged
from edgepack.gguf import keys
from edgepack.packaging.derivation import Derivation, Digested, encode
from edgepack.pipeline.export_options import given_options
from edgepack.pipeline.options import CODED, GGUF, WIRE
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.files.remote import RemoteFile
    from edgepack.pipeline.outline import Json, Made, Outline
    from edgepack.pipeline.request import ExportRequest

# Fields of `ExportRequest` that name a file or folder → the role of what lies there.
FILES = {"adapter": "adapter", "imatrix": "importance", "calibration": "calibration", "text": "text",
         "factors": "factors"}  # fmt: skip
RECIPE = "recipe_toml"  # the recipe's text, in the place of its file
PASSES_FOR = "passes_for"  # the target whose types passes worked for, where bytes decided
# What decides nothing about the bytes of the model.
_ELSEWHERE = frozenset({"output", "force", "pack", "threads", "resume", "dry_run", "validate", "provenance", "recipe",
                        "max_mean_error", "max_tensor_error", "cluster", "tune_minutes"})  # fmt: skip
# What a search was told; a file whose target was found is made again by its target. A wire's scale stands on them.
_GOALS = frozenset({"max_size", "max_download", "min_agreement", "max_kl", "bits", "text", "chunks"})
_DESCRIBING = re.compile(r".*\.(json|jinja|model|tiktoken|spm)|.*vocab.*\.txt|merges\.txt|README\.md", re.IGNORECASE)
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")
_LIBRARIES = ("numpy", "torch", "transformers", "peft", "llama-cpp-python")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Recorder:
    """Knows what a request reads; digests are taken once, when the first derivation is written.

    Args:
        request: of the export.
    """

    def __init__(self, request: ExportRequest) -> None:
        self._request = request
        self._began: dict[Path, FileState] = {}
        with suppress(OSError):  # what is not there is refused by who opens it
            self._began = {path: FileState.of(path) for _name, path in model_files(request.source)}
        self._versions = {file: file.version() for file in request.remote}

    def write(self, made: Made, path: Path) -> Path:
        """Write the derivation of what was made to `path`; gives `path`."""
        path.write_bytes(encode(self.derivation(made.outline, (*made.files, *made.beside))))
        return path

    def derivation(self, outline: Outline, made: tuple[Path, ...]) -> Derivation:
        """How files were made.

        Args:
            outline: of the model's file.
            made: the GGUF first.
        """
        subjects = tuple(Digested(path.name, file_sha256(path)) for path in made)
        repository, revision = hub_origin(self._request.source)
        return Derivation(
            subjects, self._request.source.resolve().name if not repository else repository.rpartition("/")[2],
            repository, revision, outline.target, self._parameters() | _refined(self._request, outline), self._goal(),
            self.sources,
            {row.name: row.type for row in outline.tensors}, versions(self._request),
        )  # fmt: skip

    @cached_property
    def sources(self) -> tuple[Digested, ...]:
        """Every file that the request reads, digested."""
        request, progress = self._request, self._request.progress
        repository, revision = hub_origin(request.source)
        base = f"https://huggingface.co/{repository}/resolve/{revision}/" if repository and revision else ""
        found = []
        for name, path in model_files(request.source):
            digest = file_sha256(path, "digesting the source", progress)
            if path in self._began:  # what is digested is what was exported
                check_unchanged(path, self._began[path], CheckpointError)
            found.append(Digested(name, digest, "model", f"{base}{name}" if base else ""))
        found += [Digested(file.name, self._remote_digest(file), "model") for file in request.remote]
        for path, role in self._beside():
            found += [Digested(name, file_sha256(file), role) for name, file in _files_at(path)]
        return tuple(found)

    def _remote_digest(self, file: RemoteFile) -> str:
        """Of weights that lie at a URL, which are read once more for it."""
        digest = file.sha256("digesting the source", self._request.progress)
        if file.version() != self._versions[file]:
            raise CheckpointError(f"{file.url}: it changed while it was read")
        return digest

    def _beside(self) -> Iterator[tuple[Path, str]]:
        """What is read beside the model."""
        taken = {name for name in FILES if name not in _GOALS or self._request.kind == WIRE}
        if not self._reads_factors():
            taken.discard("factors")
        for name in sorted(taken):
            value = getattr(self._request, name)
            if value is not None:
                yield Path(value), FILES[name]
        text = self._recipe_text()
        if text is not None and self._request.calibration is None:
            yield text, "calibration"

    def _reads_factors(self) -> bool:
        """Whether the file of factors is read, and not written."""
        if self._request.factors is None:
            return False
        from edgepack.pipeline.makers.opened import read_request_recipe

        steps = read_request_recipe(self._request).passes
        return any(step.name == "lowrank" and step.settings["method"] == "stored" for step in steps)

    def _recipe_text(self) -> Path | None:
        """The calibration text that a recipe's file names."""
        if self._request.recipe is None:
            return None
        from edgepack.quant.passes.recipe import read_recipe

        named = read_recipe(Path(self._request.recipe)).calibration.get("text")
        return Path(named) if isinstance(named, str) else None

    def _parameters(self) -> dict[str, Json]:
        skipped = _ELSEWHERE | FILES.keys() | (frozenset() if self._request.kind == WIRE else _GOALS)
        told = {name: value for name, value in self._given().items() if name not in skipped}
        if self._request.recipe is not None:
            from edgepack.quant.passes.recipe import read_recipe

            told[RECIPE] = read_recipe(Path(self._request.recipe)).shown
        return told

    def _goal(self) -> dict[str, Json]:
        if self._request.kind == WIRE:
            return {}
        return {name: value for name, value in self._given().items() if name in _GOALS and name not in FILES}

    def _given(self) -> dict[str, Json]:
        """The options that are not at their defaults, as JSON has them; of what is no plain value, nothing."""
        values = {name: getattr(self._request, name) for name in given_options(self._request)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {name: value for name, value in plain.items() if isinstance(value, (str, int, float, bool, list))}


def _refined(request: ExportRequest, outline: Outline) -> dict[str, Json]:
    """What a refined file is made again with: the bytes that were searched or worked out, in place of the goal."""
    budget = outline.metadata.get(keys.REFINE_BUDGET)
    if request.kind == WIRE:
        return {}  # made again by its goals
    if budget is None:
        return {} if request.calibration is None or request.kind != GGUF else {"refine": False}
    sized = request.target is None or (request.max_size, request.bits, request.for_device) != (None, None, None)
    told: dict[str, Json] = {"refine": True, "smooth": bool(request.smooth)}
    if keys.REFINE_PASSES_FOR in outline.metadata:
        told[PASSES_FOR] = str(outline.metadata[keys.REFINE_PASSES_FOR].value)
    if request.tune:
        told["tune_steps"] = int(outline.metadata[keys.TUNING_STEPS].value)
    return {**told, **({"max_size": int(budget.value)} if sized else {})}


def model_files(model: Path) -> list[tuple[str, Path]]:
    """(name, path) of every file of a model that decides anything: a GGUF and its shards, or a folder's files.

    Of a folder: the weights that transformers would read, configuration, tokenizer, templates and card, sub-folders
    of modules included; hidden files are none of it.
    """
    if model.is_file():
        shard = _SHARD.fullmatch(model.name)
        paths = sorted(model.parent.glob(f"{shard[1]}-*-of-*.gguf")) if shard else [model]
        return [(path.name, path) for path in paths]
    chosen = next((name for name in ORDER if (model / name).is_file()), ORDER[0])
    weights = ".bin" if ".bin" in chosen else ".safetensors"
    found = [path for pattern in ("*", "*/*") for path in model.glob(pattern) if path.is_file()]
    named = {path.relative_to(model).as_posix(): path for path in found}
    return sorted(
        (name, path)
        for name, path in named.items()
        if not name.startswith(".") and (path.suffix == weights or _DESCRIBING.fullmatch(path.name))
    )


def _files_at(path: Path) -> list[tuple[str, Path]]:
    """A file, or what decides anything in an adapter's folder."""
    return [(path.name, path)] if path.is_file() else [(each.name, each) for each in sorted(path.glob("adapter_*"))]


def hub_origin(model: Path) -> tuple[str, str]:
    """(repository, commit) of a snapshot of the Hugging Face hub; empty texts where a folder does not say.

    Three layouts say it: the cache (`models--ORG--NAME/snapshots/COMMIT`), a download into a folder (which keeps
    `.cache/huggingface/download/*.metadata`, the commit in the first line), and a clone by git.
    """
    folder = model.resolve()
    for snapshots in folder.parents:
        named = snapshots.parent.name
        if snapshots.name == "snapshots" and named.startswith("models--"):
            commit = folder.relative_to(snapshots).parts[0]
            return named.removeprefix("models--").replace("--", "/", 1), commit if _COMMIT.fullmatch(commit) else ""
    commits = {_first_line(path) for path in folder.glob(".cache/huggingface/download/*.metadata")}
    if len(commits) != 1:
        commits = {_git_commit(folder)}
    (commit,) = commits
    return "", commit if _COMMIT.fullmatch(commit) else ""


def _git_commit(folder: Path) -> str:
    head = _first_line(folder / ".git" / "HEAD")
    return _first_line(folder / ".git" / head.removeprefix("ref: ")) if head.startswith("ref: refs/") else head


def _first_line(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > 1 << 16:
        return ""
    return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()


def versions(request: ExportRequest) -> dict[str, str]:
    """What computed: edgepack, Python, the machine's architecture, numpy and llama.cpp; torch where weights were."""
    coded = request.kind == CODED and request.calibration is not None
    computes_in_torch = request.changes_weights or request.kind == WIRE or request.refines or coded
    wanted = _LIBRARIES if computes_in_torch else ("numpy", "llama-cpp-python")
    found = {"edgepack": __version__, "python": platform.python_version(), "machine": platform.machine()}
    found |= {name: version for name in wanted if (version := _version(name))}
    return found | llama_cpp_version()


def _version(package: str) -> str:
    """Of an installed package; empty where it is not."""
    try:
        return packages.version(package)
    except packages.PackageNotFoundError:
        return ""


def llama_cpp_version() -> dict[str, str]:
    """llama.cpp's own version, where it is installed."""
    try:
        from llama_cpp import llama_cpp as c
    except ModuleNotFoundError:
        return {}
    return {"llama.cpp": c.llama_version().decode("utf-8", "replace")}
