"""Bundles: whole or not there, and their script installs and runs without a network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from typing import TYPE_CHECKING

import pytest

import edgepack
from edgepack.cli import execute
from edgepack.edge.bundle.wheels import PLATFORMS, this_python
from edgepack.errors import IntegrityError, NetworkError, UsageError
from edgepack.gguf.types import GGMLType, TensorInfo, string
from edgepack.gguf.writer import GGUFWriter
from edgepack.packaging.pack import pack_archive
from edgepack.version import __version__

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with (tmp_path / "model.gguf").open("wb") as stream:
        info = TensorInfo("output.weight", (4, 256), GGMLType.F16)
        writer = GGUFWriter(stream, {"general.architecture": string("llama")}, [info])
        writer.write_header()
        writer.write(info.name, bytes(info.nbytes))
        writer.close()
    pack_archive(tmp_path / "model.gguf", tmp_path / "my model.edgepack")
    return tmp_path / "my model.edgepack"


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with a wheel of edgepack's name and version whose command prints how it was called."""
    folder = tmp_path / "have"
    folder.mkdir()
    info = f"edgepack-{__version__}.dist-info"
    parts = {
        "edgepack_stand_in.py": "import os, sys\ndef main():\n    print(os.environ['EDGEPACK_OFFLINE'], sys.argv[1:])\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: edgepack\nVersion: {__version__}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedgepack = edgepack_stand_in:main\n",
    }
    with zipfile.ZipFile(folder / f"edgepack-{__version__}-py3-none-any.whl", "w") as wheel:
        for name, text in parts.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*parts, f"{info}/RECORD"]))
    return folder


def test_a_bundle_has_everything_and_the_digest_of_everything(archive: Path, wheels: Path, tmp_path: Path) -> None:
    result = edgepack.bundle(archive, tmp_path / "stick", wheels=wheels, platform="linux-x86_64", offline=True)
    found = {path.relative_to(result.folder).as_posix() for path in result.folder.rglob("*") if path.is_file()}
    assert found == {
        archive.name, "README.txt", "run.sh", "run.cmd", "SHA256SUMS", f"wheels/edgepack-{__version__}-py3-none-any.whl",
    }  # fmt: skip
    lines = (result.folder / "SHA256SUMS").read_text().splitlines()
    digests = dict(reversed(line.split("  ", 1)) for line in lines)
    assert set(digests) == found - {"SHA256SUMS"}
    for name, digest in digests.items():
        assert hashlib.sha256((result.folder / name).read_bytes()).hexdigest() == digest
    assert (result.folder / archive.name).read_bytes() == archive.read_bytes()
    assert "@" not in (result.folder / "run.sh").read_text().replace('"$@"', "")
    assert os.access(result.folder / "run.sh", os.X_OK)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def run_script(folder: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bundle's script without a network, where the system allows that, and with an index that is not there."""
    bare = ["unshare", "-rn"]
    alone = subprocess.run([*bare, "true"], capture_output=True, check=False).returncode == 0
    environment = {**os.environ, "HOME": str(home), "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    for name in ("PYTHONPATH", "XDG_DATA_HOME", "VIRTUAL_ENV"):
        environment.pop(name, None)
    command = [*(bare if alone else []), str(folder / "run.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
def test_the_script_installs_once_and_passes_what_it_is_given(archive: Path, wheels: Path, tmp_path: Path) -> None:
    folder = edgepack.bundle(archive, tmp_path / "stick", wheels=wheels, platform="linux-x86_64").folder
    for path in [*folder.rglob("*"), folder]:
        path.chmod(path.stat().st_mode & ~0o222)  # a stick may be read-only
    try:
        first = run_script(folder, tmp_path)
        assert first.returncode == 0, first.stderr
        assert first.stdout == f"1 ['run', '{folder / archive.name}']\n"
        assert "Installing" in first.stderr
        again = run_script(folder, tmp_path, "serve", "--port", "80 80")
        assert again.stdout == f"1 ['serve', '{folder / archive.name}', '--port', '80 80']\n"
        assert again.stderr == ""
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o700)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")
def test_a_bundle_of_the_real_wheel_answers_without_a_network(wheelhouse: Path, tiny: Path, tmp_path: Path) -> None:
    packed = pack_archive(tiny, tmp_path / "tiny.edgepack").output
    done = execute(["bundle", str(packed), "-o", str(tmp_path / "stick"), "--wheels", str(wheelhouse), "--offline"])
    assert done == 0
    asked = ("run", "--raw", "--prompt", "a", "--max-tokens", "2", "--temperature", "0", "--json")
    first = run_script(tmp_path / "stick", tmp_path, *asked)
    assert first.returncode == 0, first.stderr
    answer = json.loads(first.stdout)
    assert (answer["prompt"], answer["tokens"]) == ("a", 2)
    assert (tmp_path / "stick" / packed.name).read_bytes() == packed.read_bytes()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_script_installs_nothing_from_a_changed_folder(archive: Path, wheels: Path, tmp_path: Path) -> None:
    folder = edgepack.bundle(archive, tmp_path / "stick", wheels=wheels, platform="linux-x86_64").folder
    with (folder / "README.txt").open("a") as stream:
        stream.write("changed")
    done = run_script(folder, tmp_path)
    assert done.returncode != 0
    assert "README.txt" in done.stderr
    assert not (tmp_path / ".local").exists()


def test_a_python_that_the_bundle_was_not_made_for_is_named(archive: Path, wheels: Path, tmp_path: Path) -> None:
    folder = edgepack.bundle(
        archive, tmp_path / "stick", wheels=wheels, platform="linux-x86_64", pythons=["3.98"]
    ).folder
    done = run_script(folder, tmp_path)
    assert done.returncode == 1
    assert "3.98" in done.stderr


def test_what_cannot_become_a_bundle_leaves_nothing(archive: Path, wheels: Path, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    with pytest.raises(UsageError, match="windows-x86_64"):
        edgepack.bundle(archive, stick, wheels=wheels, platform="amiga")
    damaged = tmp_path / "damaged.edgepack"
    content = bytearray(archive.read_bytes())
    content[200] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(IntegrityError):
        edgepack.bundle(damaged, stick, wheels=wheels)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NetworkError, match="edgepack"):
        edgepack.bundle(archive, stick, wheels=empty, platform="linux-x86_64")
    quoted = archive.rename(archive.with_name("it's.edgepack"))
    with pytest.raises(UsageError, match="quotes"):
        edgepack.bundle(quoted, stick, wheels=wheels)
    assert not stick.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    stick.mkdir()
    with pytest.raises(UsageError, match="new folder"):
        edgepack.bundle(damaged, stick, wheels=wheels)


def test_without_wheels_a_bundle_needs_a_connection_and_says_so(archive: Path, tmp_path: Path) -> None:
    assert execute(["bundle", str(archive), "-o", str(tmp_path / "stick"), "--offline"]) == 2
    assert execute(["bundle", str(archive), "-o", str(tmp_path / "stick"), "--python", "three"]) == 2


def test_every_platform_has_tags_and_this_python_is_a_version() -> None:
    assert all(platform.tags for platform in PLATFORMS.values())
    assert this_python().startswith("3.")
