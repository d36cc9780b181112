"""The house stands as its plan says: layers, packages, what the device may import, how fast it starts."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import figure_file
import house
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("export", "quant", "packaging", "edge")
# A layer imports only layers with a smaller number (and itself).
LAYERS = {
    "errors": 1, "version": 1, "quantities": 2, "progress": 2, "crew": 2, "files": 2, "file_kinds": 2, "file_digest": 2, "ordered_threads": 2, "processors": 2, "log_level": 2, "text_file": 2, "expressions": 2, "gguf": 2, "kernels": 2, "trellis": 2, "model": 2, "documents": 2,
    "quant": 3, "packaging": 3, "export": 4, "edge": 4, "pipeline": 5, "api": 6, "cli": 7, "__main__": 8, "__init__": 8,
}  # fmt: skip
SIBLINGS = ({"quant", "packaging"}, {"export", "edge"}, {"export", "packaging"})
# A module of `edge` or `quant.codecs` that names one of these is a publisher's: nothing else there may import it.
HEAVY = {"torch", "transformers", "peft", "accelerate"}


def layer_of(name: str) -> str:
    """The layer's name: `pipeline.export` and its like are one layer."""
    return "pipeline" if name.startswith("pipeline") else name


def modules() -> list[tuple[str, Path]]:
    """(dotted name below edgepack, file) of every module."""
    found = [(path.relative_to(ROOT / "src/edgepack"), path) for path in (ROOT / "src/edgepack").rglob("*.py")]
    for part in PARTS:
        found += [(path.relative_to(ROOT), path) for path in (ROOT / part).rglob("*.py")]
    return sorted((".".join(name.with_suffix("").parts), path) for name, path in found)


def imports_of(path: Path) -> set[str]:
    """Absolute dotted names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(("name", "path"), modules(), ids=[name for name, _ in modules()])
def test_a_layer_imports_only_layers_below_it(name: str, path: Path) -> None:
    own = layer_of(name.split(".", maxsplit=1)[0])
    for imported in imports_of(path):
        if imported.startswith("edgepack."):
            other = layer_of(imported.split(".")[1])
            if other == "__version__":
                continue
            assert other in LAYERS, f"{name} imports {imported}: give it a layer"
            assert LAYERS[other] <= LAYERS[own], f"{name} imports {imported}, a layer above it"
            for pair in SIBLINGS:
                assert own == other or not {own, other} <= pair, f"{name} imports its sibling {imported}"
        else:
            assert imported.split(".")[0] not in PARTS, f"{name}: write from edgepack.{imported}"


@pytest.mark.parametrize("part", PARTS)
def test_no_part_has_an_init_file(part: str) -> None:
    assert not list((ROOT / part).rglob("__init__.py"))


def test_pypis_packaging_is_not_shadowed() -> None:
    script = "import packaging.version, sys; sys.exit('site-packages' not in packaging.__file__)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_every_folder_is_listed_as_a_package() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {"edgepack." + ".".join(name.split(".")[:-1]) for name, _ in modules() if "." in name} | {"edgepack"}
    assert folders <= listed
    for name in listed - folders:
        part = name.removeprefix("edgepack.").replace(".", "/")
        assert (ROOT / part).is_dir() or (ROOT / "src/edgepack" / part).is_dir(), f"{name} is listed but absent"


def assert_importable_without_torch(script: str) -> None:
    """Run `script` in a fresh interpreter in which importing torch or transformers is an error."""
    guard = f"import sys\nfor name in {sorted(HEAVY)!r}: sys.modules[name] = None\n"
    result = subprocess.run([sys.executable, "-c", guard + script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_device_side_imports_no_torch() -> None:
    parts = ("packaging", "edge", "quant.codecs", "gguf")
    names = [f"edgepack.{name}" for name, path in modules() if name.startswith(parts) and not imports_of(path) & HEAVY]
    names = [name.removesuffix(".__init__") for name in names]
    assert_importable_without_torch("\n".join(f"import {name}" for name in names))


def test_every_command_is_importable_without_torch() -> None:
    from edgepack.cli import COMMANDS

    assert_importable_without_torch("\n".join(f"import edgepack.cli.{module}" for module, _ in COMMANDS.values()))


def test_every_module_imports() -> None:
    for name, _ in modules():
        if name != "__main__":
            assert importlib.import_module(f"edgepack.{name}".removesuffix(".__init__"))


@pytest.mark.parametrize("arguments", [["-c", "import edgepack"], ["-m", "edgepack", "--help"]])
def test_starting_imports_nothing_heavy(arguments: list[str]) -> None:
    """What costs start-up time is imports: neither numpy nor anything heavier may be among them."""
    result = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True)
    assert result.returncode == 0
    loaded = {line.rsplit("|", 1)[1].strip() for line in result.stderr.splitlines() if "|" in line}
    assert not loaded & {"numpy", "torch", "transformers", "gguf", "llama_cpp", "zstandard", "tqdm"}


def test_no_module_imports_itself_through_others() -> None:
    """Imports inside functions count: they only put a cycle off. Imports for type checkers alone do not."""
    assert house.cycles() == []


def test_a_cycle_through_a_function_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "first": "from edgepack import second",
        "second": "def work():\n    from edgepack.third import X\n    import edgepack.first",
        "third": "from typing import TYPE_CHECKING\nX = 1\nif TYPE_CHECKING:\n    from edgepack import second",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(house, "PACKAGE", tmp_path)
    monkeypatch.setattr(house, "ROOT", tmp_path)
    assert house.cycles() == [["edgepack.first", "edgepack.second"]]


def test_the_picture_of_the_house_shows_every_folder_and_what_it_imports() -> None:
    """Lines may drift until `make figures` renders them again; folders and imports may not."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    shown = [figure_file.split_row(line) for line in text.split(house.BEGIN)[1].split(house.END)[0].splitlines()[3:]]
    assert [(row[0], row[3]) for row in shown] == [(row[0], row[3]) for row in house.rows()], "run: make figures"
    for row, (folder, _modules, lines, _imports) in zip(shown, house.rows(), strict=True):
        told = int(row[2].replace(",", ""))
        assert abs(told - lines) <= max(300, 0.3 * lines), f"{folder} has {lines} lines: run make figures"
