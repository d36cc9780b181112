"""One server for all tests that do not harm it; those that do start their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from serving import Server, model, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose template takes tools; its folder's name must never be told."""
    return model(tmp_path_factory.mktemp("secret-folder"))


@pytest.fixture(scope="session")
def server(served_model: Path) -> Iterator[Server]:
    running = start(served_model)
    yield running
    running.stop()
