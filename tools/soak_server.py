"""`edgepack serve` for a long while: many requests, clients that leave, engines that are killed; is anything lost?

First requests of many kinds, some of whose clients leave in the middle: every other answer must be whole, and memory
must not grow. Then the engine is killed while it answers: that answer must end with an error, the next must come.
Run: python tools/soak_server.py MODEL.gguf [--requests 2000] [--disconnects 500] [--kills 50] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

CLIENTS = 8
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
QUESTIONS = ("Once upon a time", "Tell me a story of a girl named Lily", "a " * 60, "The end")


@dataclass
class Soak:
    """What happened.

    Attributes:
        answered: requests whose answer was whole.
        left: requests whose client went away.
        wrong: answers that were not whole, or not as they had to be.
        front, engine: resident memory in MB, measured now and then.
        kills: engines killed while they answered.
        told: of these, answers that ended with the error that says so.
        after: of these, requests afterwards that were answered.
        seconds: of all.
    """

    answered: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    front: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    kills: int = 0
    told: int = 0
    after: int = 0
    seconds: float = 0.0

    def growth(self, series: list[float]) -> float:
        """How much larger the last fifth is than the second, whose caches are full by then."""
        part = max(1, len(series) // 5)
        return statistics.median(series[-part:]) / statistics.median(series[part : 2 * part] or series)

    @property
    def holds(self) -> bool:
        """Whether nothing was lost and memory did not grow by more than a twentieth."""
        flat = all(self.growth(series) <= 1.05 for series in (self.front, self.engine) if len(series) > 5)
        return not self.wrong and flat and self.kills == self.told == self.after


class Server:
    """`edgepack serve` as a process."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "edgepack", "serve", model, "--port", "0", "--threads", "1", "--json",
                   "--ctx", "512", "--template", "chatml"]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.port = int(json.loads(self.process.stdout.readline())["url"].rsplit(":", 1)[1])

    def engine(self) -> psutil.Process | None:
        """The engine's process, where there is one."""
        return next(iter(psutil.Process(self.process.pid).children()), None)

    def memory(self) -> tuple[float, float]:
        """Of the front and of its engine, MB."""
        engine = self.engine()
        front = psutil.Process(self.process.pid).memory_info().rss
        return front / 1e6, (engine.memory_info().rss if engine is not None else 0) / 1e6

    async def ask(self, path: str, body: dict[str, Any], leave: float | None = None) -> tuple[int, str]:
        """Status and body of an answer; with `leave`, the client is gone after so many seconds (status 0)."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        try:
            answer = await asyncio.wait_for(reader.read(), leave if leave is not None else 120)
        except asyncio.TimeoutError:
            return 0, ""
        finally:
            writer.transport.abort()
        start, _blank, rest = answer.decode("utf-8", "replace").partition("\r\n\r\n")
        return int(start.split(" ", 2)[1]), rest


def question(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a request."""
    body: dict[str, Any] = {
        "max_tokens": draw.randint(1, 48),
        "stream": draw.random() < 0.5,
        "seed": draw.randint(0, 9),
    }
    text = draw.choice(QUESTIONS)
    if draw.random() < 0.5:
        return COMPLETION, {**body, "prompt": text}
    return CHAT, {**body, "messages": [{"role": "user", "content": text}]}


async def many(server: Server, soak: Soak, requests: int, disconnects: int) -> None:
    """Requests from several clients at once, some of whom leave."""
    draw = random.Random(1)
    leaving = set(draw.sample(range(requests), disconnects))
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            path, body = question(draw)
            leave = draw.uniform(0.0, 0.05) if number in leaving else None
            if leave is not None:
                body["max_tokens"] = 400
            status, text = await server.ask(path, body, leave)
            if status == 0:
                soak.left += 1
            elif whole(status, body, text):
                soak.answered += 1
            else:
                soak.wrong.append(f"{number}: {status} {text[-200:]}")
            if number % 50 == 0:
                front, engine = server.memory()
                soak.front.append(front)
                soak.engine.append(engine)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def whole(status: int, body: dict[str, Any], text: str) -> bool:
    """Whether an answer came to its end."""
    if body["stream"]:
        return status == 200 and "data: [DONE]" in text and '"finish_reason": "' in text
    return status == 200 and '"finish_reason": "' in text and '"usage"' in text


async def kill_often(server: Server, soak: Soak, kills: int) -> None:
    """Kill the engine while it answers; then ask again."""
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 400, "stream": True,
            "ignore_eos": True}  # fmt: skip
    for number in range(kills):
        answer = asyncio.create_task(server.ask(CHAT, body))
        await asyncio.sleep(0.1 + 0.2 * random.Random(number).random())
        if (engine := server.engine()) is None or answer.done():
            answer.cancel()
            continue
        os.kill(engine.pid, signal.SIGKILL)
        status, text = await answer
        counts = "[DONE]" not in text  # else the answer was out already
        soak.kills += counts
        if "engine_died" in text and status in (200, 503):
            soak.told += 1
        elif counts:
            soak.wrong.append(f"kill {soak.kills}: {status} {text[-300:]}")
        soak.after += await answers_again(server, {**body, "max_tokens": 4, "stream": False}) and counts


async def answers_again(server: Server, body: dict[str, Any]) -> bool:
    """Whether a request is answered; after thirty deaths a minute the server makes a pause, and says for how long."""
    for _ in range(90):
        status, _text = await server.ask(CHAT, body)
        if status == 200:
            return True
        await asyncio.sleep(1)
    return False


async def run(arguments: argparse.Namespace) -> Soak:
    """The whole soak."""
    soak, server, started = Soak(), Server(arguments.model), time.perf_counter()
    try:
        await many(server, soak, arguments.requests, arguments.disconnects)
        while soak.kills < arguments.kills:
            await kill_often(server, soak, arguments.kills - soak.kills)
    finally:
        server.process.terminate()
        server.process.wait(60)
    soak.seconds = time.perf_counter() - started
    return soak


def main() -> int:
    """Run it, print it, and say with the exit code whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--disconnects", type=int, default=500)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    soak = asyncio.run(run(arguments))
    if arguments.json:
        print(json.dumps({**asdict(soak), "holds": soak.holds}))
        return 0 if soak.holds else 1
    memory = " and ".join(
        f"{name} {series[len(series) // 5]:.0f} → {series[-1]:.0f} MB (× {soak.growth(series):.3f})"
        for name, series in (("front", soak.front), ("engine", soak.engine))
        if series
    )
    print("| what | result |\n|---|---|")
    print(f"| requests answered whole | {soak.answered} |\n| clients that left in the middle | {soak.left} |")
    print(f"| answers lost or wrong | {len(soak.wrong)} |\n| memory, second fifth → last fifth | {memory} |")
    print(f"| engines killed while they answered | {soak.kills} |")
    print(f"| answers that ended with `engine_died` | {soak.told} |\n| next request answered | {soak.after} |")
    print(f"| seconds | {soak.seconds:.0f} |")
    for line in soak.wrong[:5]:
        print(line, file=sys.stderr)
    return 0 if soak.holds else 1


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
