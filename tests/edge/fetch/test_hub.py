"""Checkpoints from a hub that runs on this machine and speaks the Hugging Face hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from edgepack.edge.fetch.hub import HubFile, HubSource, chosen, parse_hub_source
from edgepack.errors import NetworkError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """One repository, org/tiny.

    Attributes:
        contents: file → bytes.
        damage: files that are sent wrong.
        cut: file → bytes after which its first response is cut.
        ranges: first byte of every GET of a file.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = {
            "model.safetensors": os.urandom(300_000),
            "config.json": b'{"model_type": "llama"}',
            "tokenizer.json": b"{}",
            "pytorch_model.bin": b"a pickle",
            "modeling_tiny.py": b"print('code')",
            "onnx/model.safetensors": b"other weights",
            "README.md": b"# tiny",
        }
        self.damage: set[str] = set()
        self.cut: dict[str, int] = {}
        self.ranges: list[tuple[str, int]] = []

    def entry(self, name: str) -> dict[str, object]:
        content = self.contents[name]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
        if name.endswith((".safetensors", ".bin")):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 130}
        return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/tiny"):
            names = list(self.server.contents)
            body = {"id": "org/tiny", "sha": COMMIT, "siblings": [self.server.entry(name) for name in names]}
            self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
            return
        name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
        if name not in self.server.contents:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        self._file(name)

    def _file(self, name: str) -> None:
        content = self.server.contents[name]
        etag = hashlib.sha256(content).hexdigest()
        if name in self.server.damage:
            content = bytes([content[0] ^ 1]) + content[1:]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        cut = None
        if self.command == "GET":
            self.server.ranges.append((name, first))
            cut = self.server.cut.pop(name, None)
        self._answer(206 if asked else 200, content[first:], headers, cut)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(hub: Hub, folder: Path, *options: str, source: str = "hf:org/tiny") -> subprocess.CompletedProcess[str]:
    """`edgepack fetch` in a process of its own: the library reads HF_ENDPOINT when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(folder.parent / "hub-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-m", "edgepack", "fetch", source, "-o", str(folder), "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def visible(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in found if not name.startswith(".")}


def test_weights_and_tokenizer_come_checked_and_neither_pickles_nor_code(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path / "tiny")
    assert done.returncode == 0, done.stderr
    assert visible(tmp_path / "tiny") == {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    told = json.loads(done.stdout)
    weights = hub.contents["model.safetensors"]
    assert told["revision"] == COMMIT
    assert told["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert (tmp_path / "tiny/model.safetensors").read_bytes() == weights
    done = fetch(hub, tmp_path / "tiny", "--include", "*.bin")
    assert "pytorch_model.bin" in visible(tmp_path / "tiny")
    assert [name for name, _first in hub.ranges].count("model.safetensors") == 1  # not fetched again


def test_a_cut_download_goes_on_where_it_was_cut(hub: Hub, tmp_path: Path) -> None:
    hub.contents["model.safetensors"] = os.urandom(25 << 20)  # the library keeps what came in pieces of 10 MB
    hub.cut["model.safetensors"] = 22 << 20
    done = fetch(hub, tmp_path / "tiny")
    if done.returncode != 0:  # the library gives up after some errors: the next run goes on
        done = fetch(hub, tmp_path / "tiny")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny/model.safetensors").read_bytes() == hub.contents["model.safetensors"]
    assert ("model.safetensors", 0) in hub.ranges
    assert any(name == "model.safetensors" and first > 0 for name, first in hub.ranges)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_differs_from_the_hubs_digest_is_removed(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.damage.add(name)
    done = fetch(hub, tmp_path / "tiny")
    assert done.returncode == 1
    assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert name not in visible(tmp_path / "tiny")


def test_a_repository_that_is_not_there_is_one_line_and_exit_code_14(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path / "x", source="hf:org/nothing")
    assert done.returncode == 14
    assert done.stderr.startswith("edgepack: error: hf:org/nothing: ")
    assert done.stderr.count("\n") == 1


def test_sources_are_taken_apart_and_others_refused() -> None:
    assert parse_hub_source("hf:o/n") == HubSource("o/n", "", None)
    assert parse_hub_source("hf:o/n@refs/pr/1") == HubSource("o/n", "", "refs/pr/1")
    assert parse_hub_source("hf:o/n/a/b.gguf@v1") == HubSource("o/n", "a/b.gguf", "v1")
    for wrong in ("hf:", "hf:name", "hf:o/n@", "hf:o n/x", "hf:/o/n"):
        with pytest.raises(UsageError, match="expected hf:ORG/NAME"):
            parse_hub_source(wrong)


def test_a_hub_cannot_name_files_outside_the_folder() -> None:
    source = HubSource("o/n", "", None)
    files = [HubFile("model.safetensors", 1, None, None), HubFile("../model.safetensors", 1, None, None)]
    assert chosen(files, source, ()) == files[:1]
    with pytest.raises(NetworkError, match="stays inside"):
        chosen(files, source, ("../*",))
    with pytest.raises(UsageError, match="no safetensors"):
        chosen([HubFile("pytorch_model.bin", 1, None, None)], source, ())
