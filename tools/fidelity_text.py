"""Texts that fidelity is measured with, rebuilt on any machine: calibration of three kinds, and what it never saw.

    python tools/fidelity_text.py FOLDER [--books ../shared/text] [--test-bytes 240000] [--calibration-bytes 1200000]

Books are the excerpts of ../shared/text: `calibration.txt` and `eval.txt` are of different books. Code and chat are
made of what every Python installation has: functions of the standard library, questions about them with their
docstrings as answers, and the language reference's topics. Nothing of it is copied into the project. A module, or a
topic, is either calibration's or the tests', by a digest of its name.

Written are calibration.txt (books, code and chat, mixed), calibration-books.txt and calibration-code.txt (one kind
alone, as long), test-books.txt and test-chat.txt (chat and code). A piece of test text that shares twelve words in a
row with any calibration text is left out, and what was written is read again and checked for such.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import re
import sys
import sysconfig
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

WORDS = 12  # in a row: what two texts may not share
TESTS_SHARE = 4  # one module in four is the tests'
CALIBRATION = ("calibration.txt", "calibration-books.txt", "calibration-code.txt")
TESTS = ("test-books.txt", "test-chat.txt")
_LEFT_OUT = (
    "test",
    "tests",
    "idlelib",
    "site-packages",
    "lib2to3",
    "turtledemo",
    "pydoc_data",
    "ensurepip",
    "encodings",
)
_LONGEST = 60  # lines of a function that is shown
_LEAST_ANSWER = 160  # letters
_BOOK_PIECE = 1500  # letters
_WORD = re.compile(r"\w+")


def is_tests(name: str) -> bool:
    """Whether what is called so is the tests', and not calibration's."""
    return hashlib.sha256(name.encode()).digest()[0] % TESTS_SHARE == 0


def modules() -> Iterator[tuple[str, str]]:
    """(name, source) of the standard library's modules in Python, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not set(parts) & set(_LEFT_OUT) and not any(part.startswith("_") for part in parts):
            try:
                yield ".".join(parts), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def functions(source: str) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    """Every function and class of a module with its lines."""
    lines = source.splitlines()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node, textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))


def code_pieces(tests: bool) -> Iterator[str]:
    """Functions of the standard library."""
    for name, source in modules():
        if is_tests(name) == tests:
            for node, text in functions(source):
                if isinstance(node, ast.FunctionDef) and 5 < text.count("\n") < _LONGEST:
                    yield f"# {name}\n{text}\n"


def chat_pieces(tests: bool) -> Iterator[str]:
    """A question about Python, and the answer that its documentation gives; some ask for the code too."""
    for name, source in modules():
        for node, text in functions(source) if is_tests(name) == tests else ():
            told = ast.get_docstring(node)
            if told is None or len(told) < _LEAST_ANSWER:
                continue
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            asked = f"User: What does the {kind} {node.name} of Python's module {name} do?"
            shown = f"\n\nUser: Can you show me how it is written?\n\nAssistant: Here it is:\n\n```python\n{text}\n```"
            yield f"{asked}\n\nAssistant: {told}{shown if text.count(chr(10)) < _LONGEST // 2 else ''}\n"
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name, text in sorted(topics.items()):
        if is_tests(name) == tests and len(text) > _LEAST_ANSWER:
            yield f"User: Please explain '{name}' in Python to me.\n\nAssistant: {textwrap.dedent(text).strip()}\n"


def book_pieces(path: Path) -> Iterator[str]:
    """Paragraphs of a text, several together."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        piece += paragraph.strip("\n") + "\n\n"
        if len(piece) >= _BOOK_PIECE:
            yield piece
            piece = ""


def runs(text: str) -> Iterator[int]:
    """A number for every `WORDS` words in a row, whatever stands between them."""
    words = _WORD.findall(text.lower())
    return (hash(tuple(words[at : at + WORDS])) for at in range(len(words) - WORDS + 1))


def taken(pieces: Iterable[str], most_bytes: int, known: set[int] | None = None) -> list[str]:
    """Pieces from the beginning up to a size, none twice, none that shares a run with `known`."""
    found, size, seen = [], 0, set[int]()
    for piece in pieces:
        own = set(runs(piece))
        if own & seen or (known is not None and own & known):
            continue
        if size + len(piece.encode()) > most_bytes:
            break
        found.append(piece)
        size += len(piece.encode())
        seen |= own
    return found


def mixed(kinds: list[list[str]]) -> list[str]:
    """Pieces of several kinds by turns, in proportion to their numbers."""
    places = [((at + 0.5) / len(pieces), kind, piece) for kind, pieces in enumerate(kinds)
              for at, piece in enumerate(pieces)]  # fmt: skip
    return [piece for _place, _kind, piece in sorted(places, key=lambda each: each[:2])]


def spread(pieces: Iterable[str]) -> list[str]:
    """All pieces, in an order that has nothing to do with modules: by their digests."""
    return sorted(pieces, key=lambda piece: hashlib.sha256(piece.encode()).digest())


def make(folder: Path, books: Path, calibration_bytes: int, test_bytes: int) -> None:
    """Write the five texts."""
    makers: dict[str, Callable[[], list[str]]] = {
        "books": lambda: list(book_pieces(books / "calibration.txt")),
        "code": lambda: spread(code_pieces(tests=False)),
        "chat": lambda: spread(chat_pieces(tests=False)),
    }
    kinds = {name: maker() for name, maker in makers.items()}
    shares = {"books": 2, "code": 1, "chat": 1}
    mixture = mixed([taken(pieces, calibration_bytes * shares[name] // 4) for name, pieces in kinds.items()])
    texts = {CALIBRATION[0]: mixture, CALIBRATION[1]: taken(kinds["books"], calibration_bytes),
             CALIBRATION[2]: taken(kinds["code"], calibration_bytes)}  # fmt: skip
    known = {run for pieces in texts.values() for piece in pieces for run in runs(piece)}
    texts[TESTS[0]] = taken(book_pieces(books / "eval.txt"), test_bytes, known)
    halves = [taken(spread(kind(True)), test_bytes // 2, known) for kind in (chat_pieces, code_pieces)]
    texts[TESTS[1]] = mixed(halves)
    folder.mkdir(parents=True, exist_ok=True)
    for name, pieces in texts.items():
        (folder / name).write_text("\n".join(pieces), encoding="utf-8")


def shared_runs(test: Path, calibration: Path) -> int:
    """How many runs of `WORDS` words a test text has that a calibration text has too."""
    known = set(runs(calibration.read_text(encoding="utf-8")))
    return sum(run in known for run in runs(test.read_text(encoding="utf-8")))


def check(folder: Path) -> int:
    """Print what was written, digests and overlaps; gives the number of shared runs."""
    print(f"| text | bytes | words | sha256 |\n|{'---|' * 4}")
    for name in (*CALIBRATION, *TESTS):
        content = (folder / name).read_bytes()
        words = len(_WORD.findall(content.decode()))
        print(f"| {name} | {len(content):,} | {words:,} | {hashlib.sha256(content).hexdigest()[:16]}… |")
    shared = {(test, text): shared_runs(folder / test, folder / text) for test in TESTS for text in CALIBRATION}
    total = sum(shared.values())
    print(f"\nRuns of {WORDS} words that a test text shares with a calibration text: {total}")
    for (test, text), count in shared.items():
        if count:
            print(f"  {test} with {text}: {count}", file=sys.stderr)
    return total


def main() -> None:
    """Write the texts and check them; exit 1 where a test text has been seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--books", type=Path, default=Path(__file__).resolve().parents[2] / "shared/text")
    parser.add_argument("--calibration-bytes", type=int, default=1_200_000)
    parser.add_argument("--test-bytes", type=int, default=240_000)
    parser.add_argument("--check", action="store_true", help="only check what is there")
    arguments = parser.parse_args()
    if not arguments.check:
        make(arguments.folder, arguments.books, arguments.calibration_bytes, arguments.test_bytes)
    sys.exit(1 if check(arguments.folder) else 0)


if __name__ == "__main__":
    main()
