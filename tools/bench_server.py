"""Servers beside each other: ours, xllamacpp's own, llama-cpp-python's, on one model and in one run.

Each is a process that answers the same requests: tokens a second of one stream (idle, and with one core kept busy by
another process), processor time for each of its tokens, milliseconds to the first token of a short prompt, memory of
all its processes, and tokens a second of 1, 4 and 8 streams together. Servers are measured in turns; medians are told.
Run: python tools/bench_server.py [MODEL.gguf] [--threads 1] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
TOKENS, CONTEXT, STREAMS = 256, 512, (1, 4, 8)
PROMPT = "It was the best of times, it was"
BARE_XLLAMACPP = (
    "import sys, json, xllamacpp as x\n"
    "p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_parallel = 4; p.n_ctx = 4 * int(sys.argv[3])\n"
    "p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[2])\n"
    "p.verbosity = 0; p.port = int(sys.argv[4])\n"
    "s = x.Server(p); sys.stdin.read()\n"
)
BUSY = "while True: pass"


@dataclass
class Measured:
    """One server's figures; a list has a value a round.

    Attributes:
        name: of the server.
        single: tokens a second of one stream.
        busy: the same while another process keeps a core busy.
        processor: milliseconds of processor time for each token of that one stream, of all processes.
        front: the same of the process that clients speak to.
        first: milliseconds to the first token.
        memory: MB, of all its processes.
        together: streams → tokens a second of all of them.
    """

    name: str
    single: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    front: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    together: dict[int, list[float]] = field(default_factory=dict)


@contextlib.contextmanager
def served(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process, once it answers."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tempfile.gettempdir()
    )
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/v1/models")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.2)
        else:
            raise SystemExit(f"{command[:4]}: it does not answer")
        yield process
    finally:
        process.kill()
        process.communicate()


def stream(port: int, tokens: int = TOKENS) -> tuple[int, float, float]:
    """Tokens, seconds to the first, and seconds of one greedy completion."""
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True, "repeat_penalty": 1.0,
            "ignore_eos": True, "logit_bias": {"2": -100}, "cache_prompt": True}  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    started, first, count = time.perf_counter(), 0.0, 0
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    while line := answer.readline():
        if line.startswith(b"data: {"):
            count += 1
            first = first or time.perf_counter() - started
    connection.close()
    return count, first, time.perf_counter() - started


def together(port: int, streams: int) -> float:
    """Tokens a second of several streams at once."""
    counts: list[int] = []
    workers = [threading.Thread(target=lambda: counts.append(stream(port)[0])) for _ in range(streams)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - started)


def measure(found: Measured, command: list[str], port: int) -> None:
    """One round of one server."""
    with served(command, port) as process:
        stream(port, 4)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        before = processor_seconds(family)
        count, seconds = stream(port)[::2]
        spent = [1e3 * (after - start) / count for start, after in zip(before, processor_seconds(family), strict=True)]
        found.single.append(count / seconds)
        found.processor.append(sum(spent))
        found.front.append(spent[0])
        found.first.append(statistics.median(stream(port, 2)[1] for _ in range(5)) * 1e3)
        for number in STREAMS:
            if found.name == "llama-cpp-python's" and number > 1:
                continue  # a second request ends the first one's stream there
            found.together.setdefault(number, []).append(together(port, number))
        found.memory.append(sum(member.memory_info().rss for member in family) / 1e6)
        busy = subprocess.Popen([sys.executable, "-c", BUSY])
        try:
            count, seconds = stream(port)[::2]
            found.busy.append(count / seconds)
        finally:
            busy.kill()
            busy.wait()


def processor_seconds(family: list[psutil.Process]) -> list[float]:
    """Of each process, so far."""
    return [float(sum(member.cpu_times()[:2])) for member in family]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(model: str, threads: int) -> dict[str, list[str]]:
    """How each server is started; `PORT` stands for its port."""
    common = [sys.executable, "-m"]
    found = {
        "edgepack serve": [*common, "edgepack", "serve", model, "--port", "PORT", "--threads", str(threads), "--ctx",
                           str(CONTEXT), "--parallel", "4"],
        "xllamacpp's": [sys.executable, "-c", BARE_XLLAMACPP, model, str(threads), str(CONTEXT), "PORT"],
        "llama-cpp-python's": [*common, "llama_cpp.server", "--model", model, "--port", "PORT", "--n_ctx", str(CONTEXT),
                               "--n_threads", str(threads), "--interrupt_requests", "false"],
    }  # fmt: skip
    if any(importlib.util.find_spec(package) is None for package in ("llama_cpp", "fastapi", "starlette_context")):
        del found["llama-cpp-python's"]  # its server's packages came with edgepack once, and do no more
    return found


def exported(folder: Path) -> str:
    """The bundled model as a GGUF."""
    out = folder / "books.gguf"
    model = ROOT / "tests/data/books-llama-6m"
    command = [sys.executable, "-m", "edgepack", "export", str(model), "--target", "gguf-q8", "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return str(out)


def row(found: Measured) -> str:
    """A line of the table."""
    rates = [statistics.median(found.together[number]) if number in found.together else None for number in STREAMS]
    cells = [
        f"{statistics.median(found.single):.0f}",
        f"{statistics.median(found.busy):.0f}",
        f"{statistics.median(found.processor):.2f}, {statistics.median(found.front):.2f}",
        f"{statistics.median(found.first):.1f}",
        f"{statistics.median(found.memory):.0f}",
        *("—" if rate is None else f"{rate:.0f}" for rate in rates),
    ]
    return f"| {found.name} | {' | '.join(cells)} |"


def main() -> int:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as name:
        model = str(Path(arguments.model).resolve()) if arguments.model else exported(Path(name))
        wanted = commands(model, arguments.threads)
        results = {server: Measured(server) for server in wanted}
        for _ in range(arguments.rounds):
            for server, command in wanted.items():
                port = free_port()
                measure(results[server], [str(port) if part == "PORT" else part for part in command], port)
    if arguments.json:
        print(json.dumps([asdict(found) for found in results.values()]))
        return 0
    heads = ["server", "tokens/s", "busy core", "CPU ms a token, of the front", "first token, ms", "memory, MB"]
    heads += [f"{number} together" for number in STREAMS]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for found in results.values():
        print(row(found))
    return 0


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
