"""Attacks everything that writes, at each system call, and counts what came out wrong: that must be nothing.

Every command × {full disk, failing disk, kill, signal, read-only folder, a source that changes, two at once}. After
each attack the original must be intact and nothing wrong lie under the final name, and the next run must succeed and
leave no hidden neighbour. The calls are reached by a library that is preloaded (attack_calls.c); a trial is a fork of
this warm process, so that thousands are cheap.

    python tools/attack_outputs.py [--sample N] [--races N] [--json] [--seed N]
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).resolve().parent
WRITE, SYNC, NAME, OPEN, READ, LOCK = 1, 2, 4, 8, 16, 32  # of attack_calls.c
CHANGES = WRITE | SYNC | NAME
ALL = 63
NOTHING, FAIL, FAIL_ONCE, KILL_BEFORE, KILL_AFTER, SIGNAL, SHRINK, REWRITE, SHORT = range(9)
TEXT = "Once upon a time there was a small fox who wanted to see the sea and the hills behind it. " * 40
OLD = b"what lay here before"


@dataclass(frozen=True)
class Attack:
    """What happens to a run.

    Attributes:
        name: for the table.
        kinds: of calls that are counted.
        action: at the call that is reached.
        number: errno or signal.
    """

    name: str
    kinds: int
    action: int
    number: int = 0


ATTACKS = (
    Attack("kill before", CHANGES | LOCK | OPEN, KILL_BEFORE),
    Attack("kill after", CHANGES | LOCK | OPEN, KILL_AFTER),
    Attack("ENOSPC", WRITE, FAIL, errno.ENOSPC),
    Attack("EIO at fsync", SYNC, FAIL_ONCE, errno.EIO),
    Attack("EIO at write", WRITE, FAIL_ONCE, errno.EIO),
    Attack("read-only", CHANGES, FAIL, errno.EROFS),
    Attack("SIGINT", CHANGES | OPEN, SIGNAL, signal.SIGINT),
    Attack("SIGTERM", CHANGES, SIGNAL, signal.SIGTERM),
    Attack("SIGHUP", CHANGES, SIGNAL, signal.SIGHUP),
    Attack("source shrinks", CHANGES, SHRINK),
    Attack("source rewritten", CHANGES, REWRITE),
)
KILLS = ("kill before", "kill after")


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        name: for the table.
        run: does it, given the folder of its outputs; gives the exit code.
        outputs: names that it makes in that folder.
        replaces: whether it is also tried with other files under these names (`run` then forces).
        victim: a source of it, in the folder of sources, that may change; empty for none.
        prepare: puts into the folder what it works on in place.
        check: whether a folder's files are right; by default where they equal those of a run without attack.
        heavy: whether it opens llama.cpp, so that fewer trials of it are made.
    """

    name: str
    run: Callable[[Path, bool], int]
    outputs: tuple[str, ...]
    replaces: bool = True
    victim: str = ""
    prepare: Callable[[Path], None] = lambda _folder: None
    check: Callable[[Path], bool] | None = None
    heavy: bool = False


@dataclass
class Tally:
    """What was tried and what came out."""

    tried: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Bench:
    """The folders, the sources and the preloaded library."""

    def __init__(self, base: Path, seed: int) -> None:
        self.base, self.random = base, random.Random(seed)
        self.sources, self.work, self.kept = base / "sources", base / "work", base / "kept"
        self.log = base / "log"
        self.sources.mkdir()
        self._library = ctypes.CDLL(None)
        self._library.attack_arm.argtypes = [
            ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int,
            ctypes.c_uint,
        ]  # fmt: skip
        self._library.attack_count.restype = ctypes.c_long

    def arm(self, attack: Attack | None, at: int, victim: str, delay: int = 0, seed: int = 0) -> None:
        """Let the library count calls below the folder of outputs, and act at number `at`."""
        kinds, action, number = (ALL, NOTHING, 0) if attack is None else (attack.kinds, attack.action, attack.number)
        source = str(self.sources / victim).encode()
        self._library.attack_arm(str(self.work).encode(), source, kinds, action, at, number, delay, seed)

    def fork(
        self, command: Command, attack: Attack | None, at: int, *, force: bool, delay: int = 0, log: str = "log"
    ) -> tuple[int, int]:
        """Start a trial: (process, where it will say how many calls it made)."""
        reader, writer = os.pipe()
        seed = self.random.randrange(1 << 31)
        process = os.fork()
        if process:
            os.close(writer)
            return process, reader
        os.close(reader)
        code = 70
        try:
            sink = os.open(self.base / log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            os.chdir(self.work)
            for name in ("SIGTERM", "SIGHUP"):
                signal.signal(getattr(signal, name), _end)
            self.arm(attack, at, command.victim, delay, seed)
            try:
                code = command.run(self.work, force)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 70
            except KeyboardInterrupt:
                code = 130
            self._library.attack_disarm()
            os.write(writer, str(self._library.attack_count()).encode())
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # noqa: BLE001  a child must end here, whatever happened
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)

    def trial(
        self, command: Command, attack: Attack | None = None, at: int = 0, *, force: bool = False
    ) -> tuple[int, int]:
        """Run a command to its end: (exit code, or minus a signal; calls of the attack's kinds)."""
        process, reader = self.fork(command, attack, at, force=force)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        told = os.read(reader, 32)
        os.close(reader)
        return status, int(told or 0)

    def said(self, log: str = "log") -> str:
        """What the last trial printed."""
        return (self.base / log).read_text(errors="replace")

    def clean(self, command: Command, *, with_old: bool) -> None:
        """A new folder of outputs, with other files under the final names where wanted."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        command.prepare(self.work)
        for name in command.outputs if with_old else ():
            if not (self.work / name).exists():
                (self.work / name).write_bytes(OLD)

    def keep_victim(self, command: Command) -> None:
        """Keep a copy of the source that may change."""
        if command.victim:
            shutil.copy2(self.sources / command.victim, self.kept)

    def restore_victim(self, command: Command) -> None:
        """Bring the source back as it was, time and all."""
        if command.victim:
            with self.kept.open("rb") as good, (self.sources / command.victim).open("r+b") as stream:
                shutil.copyfileobj(good, stream)
                stream.truncate()
            shutil.copystat(self.kept, self.sources / command.victim)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def digests(folder: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Name → SHA-256, or None where nothing is."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() if (folder / name).is_file() else None
        for name in names
    }


@dataclass(frozen=True)
class Trial:
    """A command in a folder with or without other files in its way, and what its outputs may be.

    Attributes:
        command: what is run.
        with_old: whether other files lie under its final names.
        before: digests of what lies there before.
        good: of the outputs of a run without attack.
        other: of the outputs made of the source as `REWRITE` leaves it: right too where that came before all else.
    """

    command: Command
    with_old: bool
    before: dict[str, str | None]
    good: dict[str, str | None]
    other: dict[str, str | None]

    def is_right(self, folder: Path, found: dict[str, str | None]) -> bool:
        """Whether all outputs are those of one good run."""
        return found in (self.good, self.other) if self.command.check is None else self.command.check(folder)

    def may_be(self, name: str, value: str | None) -> bool:
        """Whether that may lie under a final name after a run that failed."""
        known = (self.before[name], self.good[name], self.other[name])
        return self.command.check is not None or value in known


def attack_command(bench: Bench, command: Command, per_attack: int, tally: Tally, attacks: Sequence[Attack]) -> None:
    """Every attack on a command, at every call or at `per_attack` of them, with and without files in its way."""
    for with_old in (False, True)[: 2 if command.replaces else 1]:
        trial = _without_attack(bench, command, with_old, tally)
        if trial is None:
            return
        for attack in attacks:
            if attack.action in (SHRINK, REWRITE) and not command.victim:
                continue
            bench.clean(command, with_old=with_old)
            _, calls = bench.trial(command, Attack("count", attack.kinds, NOTHING), force=with_old)
            places = range(1, calls + 1)
            for at in places if calls <= per_attack else sorted(bench.random.sample(places, per_attack)):
                _attack_once(bench, trial, attack, at, tally)


def _without_attack(bench: Bench, command: Command, with_old: bool, tally: Tally) -> Trial | None:
    bench.clean(command, with_old=with_old)
    before = digests(bench.work, command.outputs)
    code, _ = bench.trial(command, force=with_old)
    good = digests(bench.work, command.outputs)
    if code or None in good.values() or (command.check is not None and not command.check(bench.work)):
        tally.wrong.append(f"{command.name}: without attack: exit {code}: {bench.said()[-400:]}")
        return None
    other = good
    if command.victim:
        bench.keep_victim(command)
        bench.clean(command, with_old=with_old)
        bench.trial(command, Attack("first", ALL, REWRITE), 1, force=with_old)
        other = digests(bench.work, command.outputs)
        bench.restore_victim(command)
    return Trial(command, with_old, before, good, other)


def _attack_once(bench: Bench, trial: Trial, attack: Attack, at: int, tally: Tally) -> None:
    command = trial.command
    bench.clean(command, with_old=trial.with_old)
    bench.keep_victim(command)
    code, _ = bench.trial(command, attack, at, force=trial.with_old)
    bench.restore_victim(command)
    tally.tried[attack.name] += 1
    tally.ended[f"{attack.name}: {code}"] += 1
    where = f"{command.name}, {attack.name} at call {at}{' over old files' if trial.with_old else ''}: exit {code}"
    killed = attack.action in (KILL_BEFORE, KILL_AFTER)
    if "Traceback" in bench.said() or (not killed and (code < 0 or code == 70)):
        tally.wrong.append(f"{where}: {bench.said()[-600:]}")
    found = digests(bench.work, command.outputs)
    wrong = [name for name, value in found.items() if not trial.may_be(name, value)]
    if wrong or (code == 0 and not trial.is_right(bench.work, found)):
        tally.wrong.append(f"{where}: not what a good run makes: {wrong or 'not all'}")
    _check_next_run(bench, trial, where, tally)


def _check_next_run(bench: Bench, trial: Trial, where: str, tally: Tally) -> None:
    """The next run succeeds and leaves what a run in an empty folder leaves."""
    command = trial.command
    whole = command.check is not None and command.check(bench.work)
    if whole or (not trial.with_old and command.replaces):  # what is there already is in the way: it is taken away
        for name in command.outputs:
            (bench.work / name).unlink(missing_ok=True)
    code, _ = bench.trial(command, force=trial.with_old)
    again = digests(bench.work, command.outputs)
    right = again == trial.good if command.check is None else command.check(bench.work)
    left = sorted(path.name for path in bench.work.rglob("*") if path.name.startswith("."))
    if code or not right or left:
        tally.wrong.append(f"{where}: the next run: exit {code}, right: {right}, left: {left}: {bench.said()[-300:]}")


def race(bench: Bench, first: Command, second: Command, rounds: int, tally: Tally) -> None:
    """Two commands that want one name at once, with waits at every call: one of them has it, wholly."""
    good = {}
    for command in (first, second):
        bench.clean(command, with_old=False)
        bench.trial(command)
        good[command.name] = digests(bench.work, command.outputs)
    for _ in range(rounds):
        bench.clean(first, with_old=False)
        delay = bench.random.choice((200, 1000, 3000))
        started = [
            (command, *bench.fork(command, None, 0, force=False, delay=delay, log=f"log{number}"))
            for number, command in enumerate((first, second))
        ]
        codes = {}
        for command, process, reader in started:
            codes[command.name] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            os.close(reader)
        found = digests(bench.work, first.outputs)
        winners = [name for name, code in codes.items() if code == 0]
        tally.tried["race"] += 1
        tally.ended[f"race: {len(winners)} succeeded"] += 1
        left = sorted(path.name for path in bench.work.iterdir() if path.name.startswith("."))
        if len(winners) != 1 or found != good[winners[0]] or left:
            said = bench.said("log0")[-200:] + bench.said("log1")[-200:]
            tally.wrong.append(f"race of {first.name} and {second.name}: {codes}, left {left}: {said}")


def race_of_signatures(bench: Bench, commands: Sequence[Command], rounds: int, tally: Tally) -> None:
    """Two keys sign one archive at once: both signatures are there afterwards."""
    from edgepack.packaging.archive import open_archive

    for _ in range(rounds):
        bench.clean(commands[0], with_old=False)
        started = [bench.fork(each, None, 0, force=False, delay=1000) for each in commands]
        codes = []
        for process, reader in started:
            codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
            os.close(reader)
        with open_archive(bench.work / commands[0].outputs[0]) as archive:
            count = len(archive.signatures)
        tally.tried["race of signatures"] += 1
        if codes != [0, 0] or count != 2:
            tally.wrong.append(f"race of signatures: exits {codes}, {count} signatures: {bench.said()[-200:]}")


def make_sources(folder: Path) -> None:
    """Small files for every command."""
    import numpy as np
    import tiny_models

    from edgepack.gguf.types import GGMLType
    from edgepack.packaging.delta.diff import diff_files
    from edgepack.packaging.pack import pack_archive
    from edgepack.packaging.signing import generate_key
    from edgepack.quant.calibration.importance import ImportanceEntry, ImportanceMatrix
    from edgepack.quant.calibration.importance_file import write_importance

    tiny_models.write_random(folder / "a.gguf", tiny_models.Shape(context=64), seed=1)
    tiny_models.write_random(folder / "b.gguf", tiny_models.Shape(context=64), seed=2)
    tiny_models.write_random(
        folder / "q.gguf",
        tiny_models.Shape(context=64, width=256, feed_forward=256, head_width=64, type=GGMLType.Q8_0),
        seed=3,
    )
    for name in ("a", "b"):
        pack_archive(folder / f"{name}.gguf", folder / f"{name}.edgepack")
        generate_key(folder / f"{name}.key")
    diff_files(folder / "a.gguf", folder / "b.gguf", folder / "ab.edgepatch")
    shutil.copy(HERE.parent / "tests/golden/variant/v1-nf4.gguf", folder / "variant.gguf")
    (folder / "text.txt").write_text(TEXT)
    for number, name in enumerate("ij"):
        sums = np.arange(1.0, 65.0)[None] * (number + 1)
        entries = {f"blk.{layer}.attn_q.weight": ImportanceEntry(sums, np.array([64])) for layer in range(40)}
        write_importance(folder / f"{name}.gguf", ImportanceMatrix(entries, 1, 64, ("text",)))


def commands_of(bench: Bench) -> dict[str, Command]:
    """Every command that writes, on the small files."""
    s = bench.sources

    def cli(*arguments: object) -> Callable[[Path, bool], int]:
        def run(_work: Path, force: bool) -> int:
            from edgepack.cli import execute

            return execute([*map(str, arguments), *(["--force"] if force else [])])

        return run

    def to(output: str, name: str, victim: str, *arguments: object, heavy: bool = False) -> Command:
        """A command that reads the source `victim` and writes to `-o output`."""
        return Command(name, cli(*arguments, "-o", output), (output,), victim=victim, heavy=heavy)

    def out_of(name: str, taken: str, output: str) -> Command:
        run = cli("extract", s / "a.edgepack", taken, "-o", ".")
        return Command(name, run, (output,), victim="a.edgepack")

    def signs(name: str, key: str) -> Command:
        run = cli("sign", "x.edgepack", "--key", s / key)
        return Command(name, run, ("x.edgepack",), replaces=False, prepare=in_place)

    def in_place(folder: Path) -> None:
        shutil.copy(s / "a.edgepack", folder / "x.edgepack")

    keygen = cli("keygen", "key")

    def keygen_once(folder: Path, force: bool) -> int:
        return 0 if _is_pair(folder) else keygen(folder, force)

    a, b, text = s / "a.gguf", s / "b.gguf", s / "text.txt"
    export, tensor, scored = ("export", a, "--target"), "blk.0.attn_q.weight", ("--text", text, "--ctx", 64)
    shards = tuple(f"x-0000{number}-of-00002.gguf" for number in (1, 2))
    found = [
        to("x", "pack", "a.gguf", "pack", a),
        to("x", "pack other", "b.gguf", "pack", b),
        to("x", "unpack", "a.edgepack", "unpack", s / "a.edgepack"),
        to("x", "unpack other", "b.edgepack", "unpack", s / "b.edgepack"),
        to("x", "unpack --native", "", "unpack", "--native", s / "variant.gguf"),
        out_of("extract", tensor, f"{tensor}.bin"),
        out_of("extract member", "a.gguf", "a.gguf"),
        signs("sign", "a.key"),
        signs("sign other", "b.key"),
        to("x", "sign -o", "a.edgepack", "sign", s / "a.edgepack", "--key", s / "a.key"),
        Command("keygen", keygen_once, ("key", "key.pub"), replaces=False, check=_is_pair),
        to("x", "diff", "b.gguf", "diff", a, b),
        to("x", "patch", "a.gguf", "patch", a, s / "ab.edgepatch"),
        to("x", "export", "a.gguf", *export, "gguf-q8"),
        to("x", "export other", "b.gguf", "export", b, "--target", "gguf-q8"),
        to("x", "export --resume", "a.gguf", *export, "gguf-f16", "--resume"),
        to("x.edgepack", "export --pack", "a.gguf", *export, "gguf-f16"),
        Command("export --shard-size", cli(*export, "gguf-f16", "-o", "x.gguf", "--shard-size", "200kB"), shards,
                victim="a.gguf"),
        to("x", "imatrix --merge", "i.gguf", "imatrix", "--merge", s / "i.gguf", "--merge", s / "j.gguf"),
        to("x", "imatrix", "", "imatrix", a, *scored, "--chunks", 3, heavy=True),
        to("x", "export --calibration", "", "export", s / "q.gguf", "--target", "gguf-q4km", "--allow-requantize",
           "--calibration", text, "--length", 64, "--sequences", 3, heavy=True),
        Command("validate --report", cli("validate", a, "--reference", b, *scored, "--chunks", 1, "--report", "x"),
                ("x",), check=_is_page, heavy=True),
        to("x.edgepack", "certify", "", "certify", a, "--reference", a, *scored, "--chunks", 2, heavy=True),
    ]  # fmt: skip
    return {command.name: command for command in found}


def _is_pair(folder: Path) -> bool:
    """Whether both halves of a key are there and belong together."""
    from edgepack.errors import EdgepackError
    from edgepack.packaging.signing import load_private_key
    from edgepack.packaging.trust.signatures import load_public_key

    try:
        private, public = load_private_key(folder / "key"), load_public_key(folder / "key.pub")
    except EdgepackError:
        return False
    return bool(private.public_key().public_bytes_raw() == public)


def _is_page(folder: Path) -> bool:
    """Whether the report is whole; what it measured took other times."""
    page = (folder / "x").read_bytes() if (folder / "x").is_file() else b""
    return page.rstrip().endswith(b"</html>")


def preload() -> None:
    """Start this program again with the library in front of libc."""
    folder = Path(tempfile.mkdtemp(prefix="edgepack-attack-"))
    library = folder / "attack_calls.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "attack_calls.c", "-ldl"], check=True)
    environment = {
        **os.environ, "LD_PRELOAD": str(library), "EDGEPACK_ATTACK": str(folder), "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1", "EDGEPACK_CACHE": str(folder / "cache"),
    }  # fmt: skip
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def warm_up(bench: Bench, commands: dict[str, Command]) -> None:
    """Import what trials need, here and once; nothing that starts threads."""
    import edgepack.api.archives
    import edgepack.api.checking
    import edgepack.api.export
    import edgepack.api.extracting
    import edgepack.api.fidelity
    import edgepack.api.importance
    import edgepack.api.unpacking
    import edgepack.api.updates
    import edgepack.cli.certify
    import edgepack.cli.export
    import edgepack.pipeline.makers.gguf

    for name in ("pack", "unpack", "export", "diff"):  # what they import on the way
        bench.clean(commands[name], with_old=False)
        os.chdir(bench.work)
        commands[name].run(bench.work, False)
    del edgepack


def attack(sample: int, races: int, seed: int = 1, heavy: int = 4, only: str = "", kinds: str = "") -> Tally:
    """Everything, or commands and attacks with a word in their names.

    At most `sample` places of each attack on each command are tried, `heavy` on those that open llama.cpp.
    """
    tally = Tally()
    base = Path(os.environ["EDGEPACK_ATTACK"]) / "bench"
    base.mkdir()
    bench = Bench(base, seed)
    make_sources(bench.sources)
    commands = commands_of(bench)
    here = Path.cwd()
    warm_up(bench, commands)
    os.chdir(here)
    for command in commands.values():
        if only in command.name and sample and not command.name.endswith("other"):
            chosen = [each for each in ATTACKS if kinds in each.name]
            attack_command(bench, command, heavy if command.heavy else sample, tally, chosen)
    pairs = [
        ("pack", "pack other"),
        ("unpack", "unpack other"),
        ("export", "export other"),
        ("pack", "export"),
        ("unpack", "pack"),
    ]
    for first, second in pairs if not only else ():
        race(bench, commands[first], commands[second], races // 6, tally)
    if not only:
        race_of_signatures(bench, [commands["sign"], commands["sign other"]], races - races // 6 * 5, tally)
    shutil.rmtree(base.parent, ignore_errors=True)
    return tally


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=1000, help="places of each attack on each command")
    parser.add_argument("--heavy", type=int, default=12, help="the same, of commands that open llama.cpp")
    parser.add_argument("--races", type=int, default=1200)
    parser.add_argument("--only", default="", help="commands with this in their name")
    parser.add_argument("--attacks", default="", help="attacks with this in their name, such as kill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if "EDGEPACK_ATTACK" not in os.environ:
        preload()
    started = time.monotonic()
    tally = attack(options.sample, options.races, options.seed, options.heavy, options.only, options.attacks)
    found = {
        "tried": dict(tally.tried), "kills": sum(tally.tried[name] for name in KILLS),
        "races": tally.tried["race"] + tally.tried["race of signatures"], "wrong": len(tally.wrong),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    if options.json:
        print(json.dumps({**found, "ended": dict(tally.ended), "what": tally.wrong}))
    else:
        for name, count in tally.tried.items():
            print(f"{name:<20} {count:>6}")
        print(f"wrong {len(tally.wrong)} of {sum(tally.tried.values())}, in {found['seconds']} s")
    for line in tally.wrong[:20]:
        print(line, file=sys.stderr)
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    main()
