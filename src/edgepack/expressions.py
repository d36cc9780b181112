"""Regular expressions out of files and options, matched within a limit of time: Python's own engine may take for ever.

Expressions that cannot are matched here; any other is matched in a process of its own, which is ended when it takes
too long. Nothing is refused for how it is written: checkpoints use lookaheads, which no linear engine has. What an
expression means is left to the caller.
"""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import threading
import warnings
import weakref
from contextlib import suppress
from functools import lru_cache
from typing import IO

MOST_CHARACTERS = 4096  # of an expression
MOST_NAME = 1024  # of what it is matched against: names of tensors and modules
_SECONDS = 2.0  # for one name; a sound expression takes microseconds
_START_SECONDS = 30.0
# One unbounded repetition of one character or class, and no group that is repeated: at most quadratic in a short name.
_RISKY = re.compile(r"\)[*+{]|\(\?[^:]|\\[1-9]|[*+}][+]")
_REPETITION = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|([*+{])", re.DOTALL)
# Reads `match NAME` or `search NAME` a line, answers 0 or 1 a line.
_WORKER = r"""
import re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (600, 600))
except (ImportError, ValueError, OSError):
    pass
expression = re.compile(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    how, name = line.rstrip("\n").split(" ", 1)
    print(int(getattr(expression, how)(name) is not None), flush=True)
"""


class ExpressionError(ValueError):
    """An expression that is none, or that takes too long; callers say it as an error of their own, with the place."""


class Expression:
    """A compiled expression.

    Args:
        pattern: as Python writes regular expressions.

    Raises:
        ExpressionError: it is none, or longer than `MOST_CHARACTERS`.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MOST_CHARACTERS:
            raise ExpressionError(f"an expression of at most {MOST_CHARACTERS} characters, got {len(pattern)}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sets that another version may read otherwise
                self._compiled = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ExpressionError(f"not a regular expression: {error}") from None
        self.pattern = pattern
        self._plain = is_plain(pattern)
        self._worker: _Worker | None = None
        self._known: dict[tuple[str, str], bool] = {}

    def match(self, name: str) -> bool:
        """Whether it matches from the beginning of `name`; raises ExpressionError where that takes too long."""
        return self._ask("match", name)

    def search(self, name: str) -> bool:
        """Whether it matches anywhere in `name`; raises ExpressionError where that takes too long."""
        return self._ask("search", name)

    def _ask(self, how: str, name: str) -> bool:
        if len(name) > MOST_NAME or "\n" in name:
            raise ExpressionError(f"names of at most {MOST_NAME} characters in one line, got {name!r:.80}")
        if self._plain:
            return getattr(self._compiled, how)(name) is not None
        if (how, name) not in self._known:
            if self._worker is None:
                self._worker = _Worker(self.pattern)
            self._known[how, name] = self._worker.ask(how, name)
        return self._known[how, name]


@lru_cache(256)
def expression(pattern: str) -> Expression:
    """The compiled expression; the same object for the same pattern. Raises ExpressionError as `Expression`."""
    return Expression(pattern)


def is_plain(pattern: str) -> bool:
    """Whether matching takes little time whatever the name: decided by how the pattern is written."""
    if _RISKY.search(pattern):
        return False
    return sum(1 for found in _REPETITION.finditer(pattern) if found[1]) <= 1


class _Worker:
    """The process that matches one expression; it is asked one thing at a time."""

    def __init__(self, pattern: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", _WORKER, pattern],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
            errors="surrogateescape", start_new_session=True,
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        self._stdin = stdin
        reader = threading.Thread(target=_read, args=(stdout, self._answers), daemon=True)
        reader.start()
        self._end = weakref.finalize(self, _ended, self._process, stdin, stdout, reader)
        if self._next(_START_SECONDS) != "ready":
            self._end()
            raise ExpressionError("the process that matches expressions did not start")

    def _next(self, seconds: float) -> str:
        try:
            return self._answers.get(timeout=seconds).strip()
        except queue.Empty:
            return ""

    def ask(self, how: str, name: str) -> bool:
        """Whether the expression is found; raises ExpressionError when the answer is late."""
        answer = ""
        if self._end.alive:
            try:
                self._stdin.write(f"{how} {name}\n")
                self._stdin.flush()
                answer = self._next(_SECONDS)
            except OSError:
                answer = ""
        if answer not in ("0", "1"):
            self._end()
            raise ExpressionError(f"it takes more than {_SECONDS:.0f} s on {name!r:.80}")
        return answer == "1"


def _read(stream: IO[str], answers: queue.Queue[str]) -> None:
    for line in stream:
        answers.put(line)
    answers.put("")


def _ended(process: subprocess.Popen[str], stdin: IO[str], stdout: IO[str], reader: threading.Thread) -> None:
    """End the process and wait for it."""
    process.kill()
    process.wait()
    reader.join()
    for stream in (stdin, stdout):
        with suppress(OSError):  # for what was still to be written to it
            stream.close()
