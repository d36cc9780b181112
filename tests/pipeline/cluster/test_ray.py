"""The same through Ray itself, on this machine: two nodes, killed workers, a lost node, a driver that was killed.

Nothing of Ray runs in this process: nodes and the commands that ask them are processes of their own, with a time limit.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import edgepack
from edgepack.export.interrupted import journal_path
from edgepack.pipeline.cluster import opening

pytest.importorskip("ray")

from local_ray import LocalRay, local_ray

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

SECONDS = 300  # of a command; reached by none that does not hang
COMMAND = "from edgepack.cli import main; main()"


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


@dataclass
class Driver:
    """`edgepack export --cluster` in a process of its own.

    Attributes:
        output: of the export.
    """

    ray: LocalRay
    model: Path
    output: Path

    def begin(self, *options: str, before: str = "") -> subprocess.Popen[str]:
        """Start it, after a line of Python where one is given."""
        given = ("--target", "gguf-q4km", "-o", str(self.output), "--cluster", self.ray.address, "--json", *options)
        return subprocess.Popen(
            [sys.executable, "-c", f"{before}{COMMAND}", "export", str(self.model), *given],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def wait(self, process: subprocess.Popen[str], code: int = 0) -> Any:
        """What it says: JSON, or the last line of its errors where it is to fail."""
        try:
            told, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        return errors.splitlines()[-1] if code else json.loads(told)

    def writes(self, process: subprocess.Popen[str]) -> bool:
        """Wait until it has begun its file; whether it has."""
        end = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < end:
            if list(self.output.parent.glob(".m.gguf.partial*")):
                return True
            time.sleep(0.01)
        return False

    def run(self, *options: str, code: int = 0, before: str = "") -> Any:
        """Both."""
        return self.wait(self.begin(*options, before=before), code)


@pytest.fixture
def driver(ray: LocalRay, books: Path, tmp_path: Path) -> Driver:
    return Driver(ray, books, tmp_path / "m.gguf")


def test_two_nodes_make_the_bytes_of_one_process_and_leave_nothing(driver: Driver, tmp_path: Path, alone: str) -> None:
    told = driver.run()
    assert digest(driver.output) == alone
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert told["cluster"]["done_again"] == 0
    assert all(node["node"].startswith("node-") for node in told["cluster"]["nodes"])


def test_a_killed_driver_leaves_no_file_and_goes_on_with_resume(driver: Driver, alone: str) -> None:
    process = driver.begin()
    assert driver.writes(process)
    process.kill()
    process.communicate(timeout=SECONDS)
    assert not driver.output.exists() or digest(driver.output) == alone
    driver.run("--resume", "--force")
    assert digest(driver.output) == alone
    assert not journal_path(driver.output).exists()


def test_a_node_with_another_version_is_refused_by_name(driver: Driver, tmp_path: Path) -> None:
    other = "import edgepack.pipeline.cluster.nodes as nodes; nodes.__version__ = '0.0.1'; "  # workers have their own
    told = driver.run(code=edgepack.errors.DependencyError.exit_code, before=other)
    assert "cluster: node 'node-" in told
    assert told.endswith("this machine 0.0.1: its bytes could differ: expected the same on every node")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_predicts_from_measured_rates_and_writes_nothing(driver: Driver, tmp_path: Path) -> None:
    told = driver.run("--dry-run")
    predicted = told["cluster"]["predicted"]
    assert predicted["processors"] in (1, 2)  # a node that answered late is not counted on
    assert predicted["read_bytes"] > predicted["sent_bytes"] > 0
    assert predicted["seconds_a_million_weights"].keys() == {"F32", "Q4_K", "Q6_K"}
    assert not list(tmp_path.iterdir())


def test_killed_workers_and_a_lost_node_change_nothing_and_stdout_stays_json(
    driver: Driver, ray: LocalRay, alone: str
) -> None:
    process = driver.begin()
    assert driver.writes(process)
    for number in range(3):
        end = time.monotonic() + 5
        while not ray.kill_worker(number) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)
    ray.lose()
    driver.wait(process)
    assert digest(driver.output) == alone


def test_opening_waits_long_enough_for_a_first_import() -> None:
    assert opening.SECONDS >= 60
