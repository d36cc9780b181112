"""Writes constraints.txt and constraints-build.txt: every package that `make test` installs, with version and hashes.

`make lock` resolves anew but keeps what this environment has and was tested with; `make lock UPGRADE=1` takes the
newest. Needs `uv` (pip install uv). tests/test_constraints.py holds the files against pyproject.toml and the
environment; the Makefile installs from nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK, BUILD_LOCK = ROOT / "constraints.txt", ROOT / "constraints-build.txt"
EXTRAS = ("compress", "train", "cluster", "calibrate", "clients", "sigstore", "dev")
# What builds edgepack itself, and the one package that has no wheels: llama-cpp-python.
BUILD = ("setuptools>=77", "wheel", "cffi>=1.17", "scikit-build-core>=0.10", "pathspec", "cmake>=3.21", "ninja")
_OURS = frozenset({"edgepack", "pip", "uv"})
HEAD = """\
# {what}, with the SHA-256 of every file that an index may give for it.
# Made by `make lock`; installed by the Makefile with --require-hashes.
"""


def installed() -> str:
    """What this environment has, a pin a line."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and name.lower() not in _OURS:
            found[name.lower()] = f"{name}=={distribution.version}"
    return "\n".join(found[name] for name in sorted(found)) + "\n"


def pip_settings() -> list[str]:
    """Folders of wheels and further indexes that pip is configured with: uv does not read pip's configuration."""
    shown = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    options = []
    for line in shown.stdout.splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in ("find-links", "extra-index-url", "index-url"):
            options += [word for place in value.strip("'\"").split() for word in (f"--{name}", place)]
    return options


def compiled(what: str, source: list[str], pins: Path | None) -> str:
    """The lock of requirements: uv's answer without its comments, under our head."""
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("expected uv on the path: pip install uv")
    command = [uv, "pip", "compile", *source, "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    command += ["--python", sys.executable, "--index-strategy", "unsafe-best-match", *pip_settings()]
    command += [] if pins is None else ["--constraint", str(pins)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    kept = [line for line in done.stdout.splitlines() if line and not line.startswith(("#", "--"))]
    return HEAD.format(what=what) + "\n".join(kept) + "\n"


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="the newest versions instead of the installed ones")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pins, wanted = Path(folder) / "installed.txt", Path(folder) / "build.in"
        pins.write_text(installed())
        wanted.write_text("\n".join(BUILD) + "\n")
        extras = [word for extra in EXTRAS for word in ("--extra", extra)]
        kept = None if arguments.upgrade else pins
        lock = compiled(f"What `edgepack[{','.join(EXTRAS)}]` installs", ["pyproject.toml", *extras], kept)
        build = compiled("What builds edgepack and llama-cpp-python", [str(wanted)], kept)
    LOCK.write_text(lock)
    BUILD_LOCK.write_text(build)
    for path in (LOCK, BUILD_LOCK):
        print(f"{path.name}: {path.read_text().count('==')} packages")


if __name__ == "__main__":
    main()
