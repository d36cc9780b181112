"""Edgepack's wheel, built from the tree as it stands, and the wheels that it needs: once a session, for all tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgepack.edge.bundle.wheels import PLATFORMS, pip_tags, this_platform, this_python

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built without isolation, so that nothing is downloaded, and from a copy, so that nothing stays in the tree."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("cl")
    if not all(map(find_spec, ("setuptools", "cffi", "pip"))) or compiler is None:
        pytest.skip("needs a compiler, pip, setuptools and cffi")
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout: it says which files there are")
    parts = ("src", "export", "quant", "packaging", "edge", "setup.py", "pyproject.toml", "README.md", "LICENSE")
    for name in listed.stdout.split("\0"):
        if name.split("/")[0] in parts and (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "tree" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", ".", "-w", str(folder)]
    # Clones for instruction sets take most of the compiler's time and change nothing that is looked at here.
    environment = {**os.environ, "CFLAGS": "-DEDGEPACK_NO_CLONES", "EDGEPACK_KERNELS_LEVEL": "-O0"}
    subprocess.run(command, cwd=folder / "tree", check=True, env=environment)
    (built,) = folder.glob("edgepack-*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="session")
def wheelhouse(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that wheel and all that it needs on a machine of this kind, from pip's index; skips without one."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "-d", str(folder)]
    command += [*pip_tags(PLATFORMS[this_platform()], this_python()), str(wheel.filename)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and re.search(
        "connection|No matching distribution|not find a version", done.stderr, re.IGNORECASE
    ):
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr
    return folder
