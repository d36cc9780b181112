"""A web server for tests: files with byte ranges, and the ways in which servers fail, each by a setting."""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Served:
    """A file and how its server behaves.

    Attributes:
        content: its bytes.
        ranges: whether ranges are answered.
        cut_after: bytes after which one response each is cut; used up from the front.
        statuses: answered instead of the file, one a request, from the front.
        redirect: address that is answered instead.
        total_lie: added to the length in Content-Range.
        shift: bytes by which ranges are answered too late.
        wrong_at: offset of a byte that is sent wrong, and how often still.
        pause: seconds before every 64 KiB.
        requests: (first, last) of each range asked for; None for the whole file.
        sent: bytes of bodies sent.
        sent_at: how often each byte of the file was sent.
    """

    content: bytes
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    redirect: str | None = None
    total_lie: int = 0
    shift: int = 0
    wrong_at: tuple[int, int] | None = None
    pause: float = 0.0
    requests: list[tuple[int, int] | None] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    def sent_twice(self) -> int:
        """Bytes of the file that were sent more than once."""
        marks = bytearray(len(self.content))
        twice = 0
        for start, stop in self.spans:
            twice += sum(marks[start:stop])
            marks[start:stop] = b"\1" * (stop - start)
        return twice


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        served = self.server.files.get(self.path.partition("?")[0])
        if served is None:
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        with self.server.lock:
            status = served.statuses.pop(0) if served.statuses else None
            cut = served.cut_after.pop(0) if served.cut_after and asked and served.ranges else None
        if status is not None:
            self.send_error(status)
        elif served.redirect is not None:
            self.send_response(302)
            self.send_header("Location", served.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif asked and served.ranges:
            self._range(served, int(asked[1]), asked[2], cut)
        else:
            self._whole(served)

    def _range(self, served: Served, first: int, last: str, cut: int | None) -> None:
        total = len(served.content)
        stop = min(total, int(last) + 1 if last else total)
        with self.server.lock:
            served.requests.append((first, stop))
        if first >= total:
            self.send_error(416)
            return
        start, end = first + served.shift, min(total, stop + served.shift)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total + served.total_lie}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self._send(served, start, end if cut is None else min(end, start + cut))
        if cut is not None:
            self.close_connection = True

    def _whole(self, served: Served) -> None:
        with self.server.lock:
            served.requests.append(None)
            cut = served.cut_after.pop(0) if served.cut_after else None
        self.send_response(200)
        self.send_header("Content-Length", str(len(served.content) + served.total_lie))
        self.end_headers()
        self._send(served, 0, len(served.content) if cut is None else cut)
        self.close_connection = cut is not None or served.total_lie != 0

    def _send(self, served: Served, start: int, stop: int) -> None:
        for place in range(start, stop, 1 << 16):
            if served.pause:
                time.sleep(served.pause)
            block = bytearray(served.content[place : min(stop, place + (1 << 16))])
            with self.server.lock:
                if served.wrong_at is not None:
                    offset, left = served.wrong_at
                    if place <= offset < place + len(block) and left:
                        block[offset - place] ^= 1
                        served.wrong_at = (offset, left - 1)
                served.spans.append((place, place + len(block)))
            try:
                self.wfile.write(block)
            except OSError:
                self.close_connection = True
                return


class FileServer:
    """Files by path; `url(path)` is the address of one."""

    def __init__(self) -> None:
        self._server = _Server()
        self.files = self._server.files
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def add(self, path: str, content: bytes) -> Served:
        self.files[path] = Served(content)
        return self.files[path]

    @contextmanager
    def running(self) -> Iterator[FileServer]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
