"""The wheels that a machine without network needs to install edgepack: pip chooses and fetches them.

Only wheels are taken, so that the other machine needs no compiler. What else a bundle holds is left to `folder`.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import edgepack
from edgepack.errors import DependencyError, NetworkError, UsageError
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Platform:
    """A kind of machine.

    Attributes:
        name: as users say it.
        tags: pip's platform tags, those of older systems too.
        extras: packages that pip's markers would miss, for it judges them by the machine that it runs on.
    """

    name: str
    tags: tuple[str, ...]
    extras: tuple[str, ...] = ()


_GLIBC = ("2_28", "2_27", "2_26", "2_24", "2_17")
_LEGACY = {"x86_64": ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
           "aarch64": ("manylinux2014_aarch64",)}  # fmt: skip


def _linux_tags(machine: str) -> tuple[str, ...]:
    """Those of manylinux, and at last that of a wheel as pip builds it from a checkout, which no index takes."""
    return (*(f"manylinux_{version}_{machine}" for version in _GLIBC), *_LEGACY[machine], f"linux_{machine}")


PLATFORMS = {
    found.name: found
    for found in (
        *(Platform(f"linux-{machine}", _linux_tags(machine)) for machine in ("x86_64", "aarch64")),
        Platform("macos-arm64", tuple(f"macosx_{version}_0_arm64" for version in (14, 13, 12, 11))),
        Platform("macos-x86_64", tuple(f"macosx_{version}_x86_64" for version in ("13_0", "12_0", "11_0", "10_15"))),
        Platform("windows-x86_64", ("win_amd64",), ("colorama",)),
    )
}  # fmt: skip


def this_platform() -> str:
    """The name of the machine that this runs on.

    Raises:
        UsageError: it is none of `PLATFORMS`.
    """
    system = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}.get(platform.system(), platform.system())
    machine = {"AMD64": "x86_64", "ARM64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"{system}-{machine}"
    if name not in PLATFORMS:
        raise UsageError(f"no bundle for this machine ({name}): name one with --platform ({', '.join(PLATFORMS)})")
    return name


def this_python() -> str:
    """The version of the running Python, as `3.12`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def gather(folder: Path, target: Platform, pythons: Sequence[str], source: Path | None) -> list[Path]:
    """Put edgepack's wheel and all that it needs into `folder`.

    Args:
        folder: empty.
        target: the machine that installs them.
        pythons: versions of Python, such as `3.12`, one of which it has.
        source: a folder of wheels, if nothing shall be fetched.

    Returns:
        the wheels, sorted.

    Raises:
        DependencyError: pip is not installed.
        NetworkError: pip cannot have a wheel for that platform and Python; the text is pip's.
    """
    if find_spec("pip") is None:
        raise DependencyError("bundle needs pip: python -m ensurepip")
    own = _own_wheel(folder, target, source)
    for python in pythons:
        _pip("download", *_origin(source), "--only-binary=:all:", *pip_tags(target, python), "-d", str(folder),
             str(own) if own is not None else f"edgepack=={__version__}", *target.extras)  # fmt: skip
    return sorted(folder.glob("*.whl"))


def _origin(source: Path | None) -> list[str]:
    return [] if source is None else ["--no-index", "--find-links", str(source)]


def pip_tags(target: Platform, python: str) -> list[str]:
    """Options that let `pip download` choose for another machine."""
    abi = f"cp{python.replace('.', '')}"
    tags = [part for tag in (*target.tags, "any") for part in ("--platform", tag)]
    return [*tags, "--python-version", python, "--implementation", "cp", "--abi", abi, "--abi", "abi3", "--abi", "none"]


def _own_wheel(folder: Path, target: Platform, source: Path | None) -> Path | None:
    """Edgepack's own wheel, built where this runs from a checkout on the same kind of machine; None: pip finds it."""
    root = Path(str(edgepack.__file__)).resolve().parents[2]
    if source is not None or target.name != this_platform() or not (root / "pyproject.toml").is_file():
        return None
    _pip("wheel", "--no-deps", "-w", str(folder), str(root))
    return next(iter(sorted(folder.glob("edgepack-*.whl"))))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", arguments[0], "-q"]
    done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NetworkError(f"pip {arguments[0]}: {lines[-1].removeprefix('ERROR: ') if lines else 'failed'}")
