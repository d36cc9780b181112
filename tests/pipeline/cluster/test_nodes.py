"""Nodes that would make other bytes, or do not see the files, are refused by name; so is an address without a cluster."""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

import edgepack
from edgepack.errors import CheckpointError, DependencyError, EdgepackError, NetworkError, UsageError
from edgepack.pipeline.cluster import opening
from edgepack.pipeline.cluster.nodes import Facts, SeenFile, facts, refuse_others
from edgepack.pipeline.cluster.ray_connection import Silenced, connected
from edgepack.pipeline.cluster.worker import answered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = Facts("here", {"edgepack": "1.0", "llama-cpp-python": "0.3.36"}, "digest")


def test_equal_nodes_are_taken() -> None:
    refuse_others(HERE, [replace(HERE, node="there"), replace(HERE, node="elsewhere")])


@pytest.mark.parametrize("name", sorted(HERE.versions))
def test_another_version_is_refused_by_the_node_s_name_and_both_versions(name: str) -> None:
    other = replace(HERE, node="there", versions={**HERE.versions, name: "9.9"})
    with pytest.raises(DependencyError, match=f"node 'there' has {name} 9.9, this machine {HERE.versions[name]}"):
        refuse_others(HERE, [HERE, other])


def test_a_node_without_a_package_is_refused() -> None:
    with pytest.raises(DependencyError, match="has llama-cpp-python absent"):
        refuse_others(HERE, [replace(HERE, versions={"edgepack": "1.0"})])


def test_a_node_that_computes_otherwise_is_refused() -> None:
    with pytest.raises(DependencyError, match="node 'there' computes other sums"):
        refuse_others(HERE, [replace(HERE, node="there", arithmetic="other")])


def test_a_folder_that_a_node_does_not_see_is_refused(tmp_path: Path) -> None:
    there = facts([SeenFile(tmp_path / ".m.gguf.12.probe", 16, b"x" * 16)], 1)
    with pytest.raises(UsageError, match=r"probe': No such file or directory: expected model and output in folders"):
        refuse_others(replace(there, missing=()), [there])


def test_a_probe_beside_the_output_tells_who_sees_its_folder_and_goes_again(tmp_path: Path) -> None:
    job = opening.Job("auto", (), tmp_path / "m.gguf")
    with opening._probed(job) as files:
        (probe,) = files
        assert probe.path.parent == tmp_path.resolve()
        assert facts(files, 1).missing == ()
        elsewhere = facts([replace(probe, path=tmp_path / "local" / probe.path.name)], 1)
        with pytest.raises(UsageError, match="expected model and output in folders"):
            refuse_others(facts(files, 1), [elsewhere])
    assert not list(tmp_path.iterdir())


def test_another_file_under_the_same_name_is_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1234")
    there = facts([SeenFile(weights, 5)], 1)
    with pytest.raises(CheckpointError, match="has 4 bytes there, 5 here"):
        refuse_others(replace(there, missing=()), [there])
    probe = tmp_path / ".probe"
    probe.write_bytes(b"1234")
    assert facts([SeenFile(probe, 4, b"4321")], 1).missing == (f"'{probe}' is another file there",)
    assert facts([SeenFile(probe, 4, b"1234")], 1).missing == ()


def test_what_a_machine_computes_is_the_same_twice() -> None:
    assert facts([], 1) == facts([], 1)


def test_a_full_disk_of_a_node_is_told_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_NODE_NAME", "node-7")

    def full() -> None:
        raise OSError(28, "No space left on device", "/shared/x")

    error = answered(full, 1).error
    assert isinstance(error, EdgepackError)
    assert str(error) == "cluster: node 'node-7': No space left on device: '/shared/x'"
    assert error.exit_code == 9


@pytest.mark.parametrize("address", ["", "nowhere", "ray://127.0.0.1:1", "127.0.0.1:", "127.0.0.1:99999", "a b:1/2"])
def test_an_address_that_is_none_is_refused(address: str, books: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="--cluster: expected auto or HOST:PORT"):
        edgepack.export(books, "gguf-q4km", output=tmp_path / "m.gguf", cluster=address)
    assert not list(tmp_path.iterdir())


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """A place that takes a connection and says nothing, or something that no cluster says."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()

        def serve() -> None:
            connection, _peer = place.accept()
            with connection:
                if answer is not None:
                    connection.sendall(answer)
                    return
                connection.settimeout(30)
                with suppress(OSError):
                    while connection.recv(1 << 10):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{place.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("answer", "seconds", "told"),
    [(None, 0.3, "no answer, within 0 seconds"), (b"", 60, "does not answer as Ray does"),
     (b"HTTP/1.1 400 Bad Request\r\n\r\n", 60, "does not answer as Ray does")],
)  # fmt: skip
def test_what_listens_and_is_no_cluster_is_refused_in_one_line(answer: bytes | None, seconds: float, told: str) -> None:
    pytest.importorskip("ray")
    with listening(answer) as address, pytest.raises(NetworkError, match=told) as refused, connected(address, seconds):
        pass
    assert str(refused.value).startswith(f"cluster '{address}': ")
    assert "\n" not in str(refused.value)


def test_no_cluster_on_this_machine_is_one_line_that_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray says of it is taken for granted: one may run beside this test."""
    ray = pytest.importorskip("ray")

    def init(**options: object) -> None:
        assert options["address"] == "auto"
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(NetworkError, match=r"cluster 'auto': none runs on this machine: start one"), connected("auto"):
        pass


def test_what_ray_s_threads_print_does_not_reach_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stdout(cast("Any", Silenced(sys.stdout))):
        thread = threading.Thread(target=print, args=("a worker died",), name="ray_listen_error_messages")
        thread.start()
        thread.join()
        print("{}", flush=True)
    assert capsys.readouterr().out == "{}\n"


def test_no_cluster_at_the_address_is_one_line(books: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(NetworkError, match=f"cluster '127.0.0.1:{port}': Connection refused") as refused:
        edgepack.export(books, "gguf-q4km", output=tmp_path / "m.gguf", cluster=f"127.0.0.1:{port}")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())
