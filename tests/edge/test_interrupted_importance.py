"""Ctrl-C while a text is run through llama.cpp: the run ends with 130 and goes on later, and no matrix is ever wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from edgepack.edge.llama.interrupt import AbortFlag, held_signals

if TYPE_CHECKING:
    from pathlib import Path

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

# Forks a child for each line it reads, sends it a signal when its callback was called so many times, tells the outcome.
SERVER = """
import json, os, signal, sys
import edgepack.api.importance, edgepack.api.export, edgepack.cli.imatrix, edgepack.cli.export
from edgepack.cli import main
from edgepack.edge.llama import importance_watch
original = importance_watch.ImportanceWatch.call
for line in sys.stdin:
    arguments, number, after = json.loads(line)
    child = os.fork()
    if child == 0:
        calls = []
        def call(self, address, ask, data):
            calls.append(1)
            if len(calls) == after:
                os.kill(os.getpid(), number)
            return original(self, address, ask, data)
        importance_watch.ImportanceWatch.call = call
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1), os.dup2(sink, 2)
        try:
            main(arguments)
        except SystemExit as stop:
            os._exit(stop.code)
        os._exit(70)
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)
"""


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_after_the_block_and_sets_the_flag_inside_it(number: signal.Signals) -> None:
    reached, flag = [], AbortFlag()
    previous = signal.signal(signal.SIGTERM, lambda code, _frame: sys.exit(128 + code))
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)), held_signals(flag) as held:  # noqa: PT012
            os.kill(os.getpid(), number)
            reached.append(bool(held) and bool(flag))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert reached == [True]


def test_without_a_signal_handlers_are_as_before_and_other_threads_hold_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_signals():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    found = []

    def other() -> None:
        with held_signals() as held:
            found.append(bool(held))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [False]


@posix
@pytest.mark.slow
def test_an_interrupted_imatrix_ends_with_130_and_resumes_to_the_same_matrix(tiny: Path, tmp_path: Path) -> None:
    text, whole, out = tmp_path / "text.txt", tmp_path / "whole.gguf", tmp_path / "out.gguf"
    text.write_text("Once upon a time there was a small fox who wanted to see the sea. " * 30)
    common = ["imatrix", str(tiny), "--text", str(text), "--ctx", "64", "--chunks", "4", "--threads", "1", "--resume"]
    rng = random.Random(4)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(path: Path, number: int, after: int) -> int:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps([[*common, "-o", str(path)], number, after]) + "\n")
            server.stdin.flush()
            return int(json.loads(server.stdout.readline()))

        assert run(whole, 0, -1) == 0
        interrupted = 0
        for number in (signal.SIGINT, signal.SIGTERM) * 8:
            code = run(out, number, rng.randrange(1, 260))
            assert code in (0, 128 + number)
            interrupted += code != 0
            assert out.exists() == (code == 0)
            if code:
                assert run(out, 0, -1) == 0
            assert out.read_bytes() == whole.read_bytes()
            assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "text.txt", "whole.gguf"]
            out.unlink()
        assert interrupted >= 8
        server.stdin.close()
