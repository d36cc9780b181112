"""One wheel a platform: the kernels with the stable ABI, and every package; built from the tree as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import zipfile

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.slow
def test_the_wheel_is_one_for_every_python(wheel: zipfile.ZipFile) -> None:
    assert re.search(r"-cp310-abi3-[^-]+\.whl$", str(wheel.filename))
    tags = next(name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))
    assert b"Root-Is-Purelib: false" in wheel.read(tags)


@pytest.mark.slow
def test_the_wheel_has_the_kernels_and_every_package(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert any(re.fullmatch(r"edgepack/kernels/_native(\.abi3)?\.(so|pyd)", name) for name in names)
    for package in SETTINGS["tool"]["setuptools"]["packages"]:
        folder = package.replace(".", "/")
        assert any(Path(name).parent.as_posix() == folder and name.endswith(".py") for name in names), package
    assert {"edgepack/py.typed", "edgepack/packaging/FORMAT.md"} <= names
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "edge/serve/page").rglob("*") if path.is_file()}
    assert {f"edgepack/{path}" for path in page} <= names


@pytest.mark.slow
def test_from_pip_install_to_an_answer_without_a_compiler(
    wheel: zipfile.ZipFile, wheelhouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journey export → pack → run → serve in a bare environment: wheels only, no compiler on PATH; prints its time.

    The wheels were fetched before (`wheelhouse`): a package cache that is warm.
    """
    path = tmp_path / "path"
    path.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HOME", "SYSTEMROOT", "TMP"))
    } | {"PATH": str(path), "CC": "false", "CXX": "false", "EDGEPACK_CACHE": str(tmp_path / "cache"), "LANG": "C"}
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    began = time.perf_counter()
    origin = ["--no-index", "--find-links", wheelhouse]
    install = [python, "-m", "pip", "install", "-q", *origin, "--only-binary", ":all:", wheel.filename]
    done = subprocess.run(install, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = time.perf_counter()

    def edgepack(*arguments: object) -> str:
        command = [str(part) for part in (python, "-m", "edgepack", *arguments)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    listed = subprocess.run([python, "-m", "pip", "list"], env=environment, capture_output=True, text=True).stdout
    for name in ("llama_cpp_python", "torch", "transformers", "safetensors"):
        assert name not in listed.replace("-", "_")
    edgepack("export", ROOT / "tests/data/books-llama-6m", "--target", "gguf-q4km", "-o", "b.gguf")
    edgepack("pack", "b.gguf", "-o", "b.edgepack")
    answer = json.loads(
        edgepack("run", "b.edgepack", "--prompt", "Once upon a time", "-n", "8", "--temp", "0", "--json")
    )
    ended = time.perf_counter()
    assert answer["text"]
    assert answer["tokens"] == 8
    size = sum(
        path.stat().st_size for path in (tmp_path / "bare").rglob("*") if path.is_file() and not path.is_symlink()
    )
    served, text = _served(python, tmp_path, environment)
    assert text == answer["text"]
    with capsys.disabled():
        print(
            f"\npip install {installed - began:.1f} s, export, pack and run {ended - installed:.1f} s: an answer "
            f"{ended - began:.1f} s after `pip install` began; a served one {served:.1f} s after `serve` began; "
            f"{size / 1e6:.0f} MB installed"
        )


def _served(python: Path, folder: Path, environment: dict[str, str]) -> tuple[float, str]:
    """Seconds until a server has started, is in health and has completed a text; and that text."""
    began = time.perf_counter()
    command = [python, "-m", "edgepack", "serve", "b.edgepack", "--port", "0", "--ctx", "256", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=folder) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            with urllib.request.urlopen(f"{url}/health") as health:
                assert health.status == 200
            request = urllib.request.Request(
                f"{url}/v1/completions",
                json.dumps({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request) as answer:
                text = str(json.load(answer)["choices"][0]["text"])
        finally:
            server.terminate()
            server.wait(60)
    return time.perf_counter() - began, text


@pytest.mark.slow
def test_the_wheel_has_nothing_of_the_tests_and_no_generated_source(wheel: zipfile.ZipFile) -> None:
    assert not [name for name in wheel.namelist() if name.startswith(("tests", "tools")) or name.endswith("_native.c")]


def test_cibuildwheel_builds_one_abi3_wheel_a_platform() -> None:
    settings = SETTINGS["tool"]["cibuildwheel"]
    lowest = SETTINGS["project"]["requires-python"].removeprefix(">=").replace(".", "")
    assert settings["build"] == [f"cp{lowest}-*"]
