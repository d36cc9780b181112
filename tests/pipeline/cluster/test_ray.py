"""The same through Ray itself, on this machine: two nodes, killed workers, a lost node, a driver that was killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import edgepack
from edgepack.export.interrupted import journal_path
from edgepack.pipeline.cluster import nodes, opening

pytest.importorskip("ray")

from local_ray import LocalRay, local_ray

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Ray leaves sockets and files of its own to the collector: only those are passed
# over, and what its imports deprecate.
pytestmark = [
    # Seen to hang on two busy processors after a worker or a node was lost; until that is understood not part of every run.
    pytest.mark.skipif("EDGEPACK_RAY_TESTS" not in os.environ, reason="EDGEPACK_RAY_TESTS=1 runs them"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]


@pytest.fixture(scope="module")
def ray() -> Iterator[LocalRay]:
    with local_ray(2) as running:
        yield running


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def alone(books: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What this process makes."""
    output = tmp_path_factory.mktemp("alone") / "m.gguf"
    return digest(edgepack.export(books, "gguf-q4km", output=output).output)


def test_two_nodes_make_the_bytes_of_one_process_and_leave_nothing(
    ray: LocalRay, books: Path, tmp_path: Path, alone: str
) -> None:
    result = edgepack.export(books, "gguf-q4km", output=tmp_path / "m.gguf", cluster=ray.address)
    assert digest(result.output) == alone
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert result.cluster is not None
    assert result.cluster["done_again"] == 0


def test_killed_workers_change_nothing(ray: LocalRay, books: Path, tmp_path: Path, alone: str) -> None:
    ended = threading.Event()

    def kill() -> None:
        number = 0
        while not ended.wait(0.3):
            number += ray.kill_worker(number)
            if number == 3:
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        result = edgepack.export(books, "gguf-q4km", output=tmp_path / "m.gguf", cluster=ray.address)
    finally:
        ended.set()
        thread.join()
    assert digest(result.output) == alone


def test_a_killed_driver_leaves_no_file_and_goes_on_with_resume(
    ray: LocalRay, books: Path, tmp_path: Path, alone: str
) -> None:
    output = tmp_path / "m.gguf"
    command = [sys.executable, "-m", "edgepack", "export", str(books), "--target", "gguf-q4km", "-o", str(output)]
    driver = subprocess.Popen([*command, "--cluster", ray.address], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while driver.poll() is None and not list(tmp_path.glob(".m.gguf.partial*")) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not output.exists() or digest(output) == alone
    result = edgepack.export(books, "gguf-q4km", output=output, cluster=ray.address, resume=True, force=True)
    assert digest(result.output) == alone
    assert not journal_path(output).exists()


def test_a_node_with_another_version_is_refused_by_name(
    ray: LocalRay, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "__version__", "0.0.1")  # of this machine: the workers have their own
    with pytest.raises(edgepack.errors.DependencyError, match=r"has edgepack .*, this machine 0\.0\.1"):
        edgepack.export(books, "gguf-q4km", output=tmp_path / "m.gguf", cluster=ray.address)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_predicts_from_measured_rates_and_writes_nothing(ray: LocalRay, books: Path, tmp_path: Path) -> None:
    result = edgepack.export(books, "gguf-q4km", output=tmp_path / "m.gguf", cluster=ray.address, dry_run=True)
    assert result.cluster is not None
    predicted = result.cluster["predicted"]
    assert isinstance(predicted, dict)
    assert predicted["processors"] in (1, 2)  # a node that answered late is not counted on
    assert predicted["read_bytes"] == result.outline.source_bytes
    assert set(predicted["seconds_a_million_weights"]) == {row.type for row in result.outline.tensors}
    assert not list(tmp_path.iterdir())


def test_a_lost_node_changes_nothing(ray: LocalRay, books: Path, tmp_path: Path, alone: str) -> None:
    ray.add()
    thread = threading.Timer(1.0, ray.lose)
    thread.start()
    try:
        result = edgepack.export(books, "gguf-q4km", output=tmp_path / "m.gguf", cluster=ray.address)
    except edgepack.errors.NetworkError as error:  # it went while nodes were asked what they are
        assert "does not answer" in str(error)  # noqa: PT017
        result = edgepack.export(books, "gguf-q4km", output=tmp_path / "m.gguf", cluster=ray.address)
    finally:
        thread.join()
    assert digest(result.output) == alone


def test_opening_waits_long_enough_for_a_first_import() -> None:
    assert opening.SECONDS >= 60
