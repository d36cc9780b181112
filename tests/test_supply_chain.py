"""What is installed is named with version and hashes, stands in the bill of materials, and is not more than is used."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
import sbom
from packaging.requirements import Requirement
from tiny_models import Shape, write_random

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = ("constraints.txt", "constraints-build.txt")


def entries(name: str) -> list[str]:
    """Requirements of a lock, each with its hashes."""
    text = "\n".join(line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#"))
    return [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip()]


def pins(name: str) -> dict[str, str]:
    matches = [re.match(r"([\w.-]+)==([^\s;\\]+)", entry) for entry in entries(name)]
    return {sbom.normal(match[1]): match[2] for match in matches if match}


def here(texts: list[str]) -> set[str]:
    """Names of requirements that count on this machine."""
    found = [Requirement(text) for text in texts]
    return {sbom.normal(each.name) for each in found if each.marker is None or each.marker.evaluate()}


@pytest.mark.parametrize("name", FILES)
def test_every_locked_package_has_one_version_and_hashes(name: str) -> None:
    for entry in entries(name):
        head, *hashes = [line.strip().rstrip("\\").strip() for line in entry.splitlines()]
        assert re.fullmatch(r"[\w.-]+==[\w.+!-]+( ; .+)?", head), head
        assert hashes, head
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), head
    assert len(pins(name)) == len(entries(name))


def test_whatever_the_project_names_is_locked_and_allowed_by_its_bounds() -> None:
    project, lock = PROJECT["project"], pins("constraints.txt")
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in sbom.EXTRAS for text in extras[extra])]
    for name in here(texts):
        assert name in lock, f"{name}: run make lock"
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            version = lock[sbom.normal(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), text
    assert here(PROJECT["build-system"]["requires"]) <= set(pins("constraints-build.txt"))


def test_whatever_a_locked_package_needs_here_is_locked_too() -> None:
    """torch and all else: --no-deps would leave it out silently."""
    lock = pins("constraints.txt") | pins("constraints-build.txt")
    for name in pins("constraints.txt"):
        try:
            wanted = sbom.needed(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for other in wanted:
            assert other in lock or not _is_here(other), f"{name} needs {other}: run make lock"


def _is_here(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_the_makefile_installs_nothing_without_hashes_by_default() -> None:
    text = (ROOT / "Makefile").read_text()
    locked = text[text.index("ifeq ($(LOCKED),1)") : text.index("\nelse\n")]
    installs = [line for line in locked.splitlines() if "PIP_LOCKED" in line or "pip install" in line]
    assert len(installs) == 4
    assert all(
        "$(PIP_LOCKED) -r constraints" in line or "--no-deps --no-build-isolation -e ." in line for line in installs
    )
    assert "--require-hashes" in text[text.index("PIP_LOCKED :=") :].splitlines()[0]


def test_the_bill_of_materials_names_every_locked_package_that_is_here_and_is_the_same_each_time() -> None:
    bill = sbom.bill()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill == sbom.bill()
    refs = {component["bom-ref"] for component in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert {entry["ref"] for entry in bill["dependencies"]} == refs
    assert all(set(entry["dependsOn"]) <= refs for entry in bill["dependencies"])
    names = {component["name"]: component for component in bill["components"]}
    for name in here(PROJECT["project"]["dependencies"]):
        assert names[name]["purl"] == f"pkg:pypi/{name}@{importlib.metadata.version(name)}"
    hashed = [name for name, component in names.items() if "externalReferences" in component]
    assert {"numpy", "zstandard", "cryptography", "torch"} <= set(hashed)


def test_the_device_installs_no_diskcache() -> None:
    """CVE-2025-69872: diskcache unpickles what lies in its folder. It comes with llama-cpp-python only."""
    assert "diskcache" not in sbom.closure("edgepack")
    assert "torch" not in sbom.closure("edgepack")


def test_nothing_of_edgepack_opens_a_diskcache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-cpp-python imports it for a cache that only who asks for `LlamaDiskCache` gets."""
    sources = [path for part in ("src", "packaging", "edge", "quant", "export") for path in (ROOT / part).rglob("*.py")]
    assert not [path for path in sources if re.search(r"diskcache|LlamaDiskCache|LlamaCache", path.read_text())]
    diskcache = pytest.importorskip("diskcache")

    def opened(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a diskcache was opened")

    monkeypatch.setattr(diskcache.Cache, "__init__", opened)
    import edgepack

    with edgepack.load(write_random(tmp_path / "tiny.gguf", Shape()), ctx=64) as model:
        assert model.complete("a", max_tokens=2).tokens <= 2


def test_no_file_of_a_stranger_is_read_by_gguf_py() -> None:
    """43 bytes make its reader loop for ever (llama.cpp #27188)."""
    parts = ("src", "packaging", "edge", "quant", "export")
    sources = [path for part in parts for path in (ROOT / part).rglob("*.py")]
    assert not [path for path in sources if re.search(r"GGUFReader|gguf_reader", path.read_text())]
