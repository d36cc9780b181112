"""Loads kernels that were built with the address sanitiser in place of the package's own: `make test-asan`.

A plugin of pytest (`-p asan_kernels`): EDGEPACK_ASAN_BUILD names the build's folder. The sanitiser's library must be
loaded before Python's own memory, by LD_PRELOAD.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_NAME = "edgepack.kernels._native"


def load(folder: Path) -> Path:
    """Make the sanitised extension the one that `edgepack.kernels` finds; returns its file.

    Raises:
        FileNotFoundError: there is none in `folder`.
    """
    found = sorted(folder.rglob("_native*.so"))
    if not found:
        raise FileNotFoundError(f"'{folder}': no sanitised kernels; run `make test-asan`")
    spec = importlib.util.spec_from_file_location(_NAME, found[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return found[0]


def pytest_report_header() -> str:
    """Says which kernels run."""
    return f"kernels: {sys.modules[_NAME].__file__}"


if folder := os.environ.get("EDGEPACK_ASAN_BUILD"):
    load(Path(folder))
