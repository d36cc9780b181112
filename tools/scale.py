#!/usr/bin/env python3
"""How long every command takes on an 8 B model here: measured on one of its layers, then multiplied.

    python tools/scale.py --folder DIR [--only 'gptq|wire'] [--limit SECONDS] [--again]
    python tools/scale.py --print --figure scale

The model measured is a Llama with one layer of an 8 B's shape (width 4096, feed-forward 14336) and a small vocabulary,
random weights in bf16 that do not repeat: its matrices are those that an 8 B model has 32 times, so that what grows
with the width is in the figure. A command that goes through weights is multiplied by weights; one that takes a text
through blocks by layers, and the head's product (the vocabulary of 128,256, for every token whose logits or gradients
it needs) is added at the rate at which this machine multiplies matrices in the same run. Starting Python is taken off
before and added after. Passes take the sequences that recipes take by default.

Counted are the processor's seconds of the command and its children, not the clock's: the machine may be shared. Two
cores are taken to need half of them. Every row is kept in docs/scale-results.json as soon as it is there, so that rows
may come from several runs; `--print` prints what is kept and measures nothing. A command that takes more processor time
than `--limit` is ended and kept as that, and its row says so.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from bench_wire import write_random
from figure_file import current_commit
from synthetic_checkpoint import LlamaShape

from edgepack.quantities import format_duration, format_size

OWN_WORDS = Path(__file__).resolve().parent.parent / "tests/data/own-words.txt"
LAYERS, VOCABULARY = 32, 128_256  # of Llama 3.1 8B
ONE_LAYER = LlamaShape(hidden=4096, layers=1, feed_forward=14336, heads=32, kv_heads=8, vocabulary=4096)
WHOLE = LlamaShape(hidden=4096, layers=LAYERS, feed_forward=14336, heads=32, kv_heads=8, vocabulary=VOCABULARY)
LIMIT_HOURS = 12
CORES = 2
RESULTS = Path(__file__).resolve().parent.parent / "docs/scale-results.json"
_ENDED = 152  # by SIGXCPU, as shells have it
_CHILD = """
import re, resource, signal, sys
from pathlib import Path
limit = int(sys.argv.pop(1))
def told(code):
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
    print(sum(each.ru_utime + each.ru_stime for each in used), peak, code, file=sys.stderr, flush=True)
def ended(*_):
    import os
    told(152)
    os._exit(152)
if limit:
    signal.signal(signal.SIGXCPU, ended)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 60))
from edgepack.cli import execute
code = execute(sys.argv[1:])
told(code)
sys.exit(code)
"""


@dataclass(frozen=True)
class Command:
    """One command to be measured.

    Attributes:
        name: as the table says it.
        arguments: of edgepack; MODEL, TEXT, OUT and N (sequences) stand for what the run has.
        by: what it is multiplied by: `weights`, or `layers`.
        head: products of the head for each token of the text: 1 for logits, 3 with gradients, 0 for none.
        reads: a file in OUT that another command makes.
    """

    name: str
    arguments: str
    by: str = "weights"
    head: int = 0
    reads: str = ""


@dataclass(frozen=True)
class Row:
    """A command measured on one layer.

    Attributes:
        name: of the command.
        seconds: processor time; the limit where it was ended.
        ended: whether it was.
        peak: resident bytes at most.
        start: processor time of starting and doing nothing, in the same run.
        tokens: of the text that the head's product is added for.
        rate: multiply-adds a second of one core in the same run.
        commit: that was measured.
        date: when.
    """

    name: str
    seconds: float
    ended: bool
    peak: int
    start: float
    tokens: int
    rate: float
    commit: str
    date: str


TAKEN = "--calibration TEXT --sequences N"
PASS_TOKENS = 64 * 512  # of a recipe's calibration


def _exported(kind: str, file: str = "") -> Command:
    target = "gguf-" + kind.replace("_", "")
    return Command(f"export {kind}", f"export MODEL --target {target} -o OUT/{file or kind}.gguf")


def _passed(name: str, setting: str, *, reads: bool = True) -> Command:
    text = "--calibration TEXT " if reads else ""
    target = "gguf-q4km" if setting in ("gptq", "awq", "smooth") else "gguf-q8"
    plain = "--no-refine " if reads else ""  # a pass that leaves refinement in force would be measured with it
    return Command(
        f"pass {name}", f"export MODEL --target {target} --pass {setting} {text}{plain}-o OUT/pass.gguf", "layers",
        int(reads),
    )  # fmt: skip


COMMANDS = (
    *(_exported(kind) for kind in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k", "iq4_xs")),
    Command("pack", "pack OUT/q5_k_m.gguf -o OUT/q5.edgepack", reads="q5_k_m.gguf"),
    Command("verify", "verify OUT/q5.edgepack", reads="q5.edgepack"),
    Command("unpack", "unpack OUT/q5.edgepack -o OUT/back.gguf", reads="q5.edgepack"),
    Command("imatrix", "imatrix OUT/f16.gguf --text TEXT --ctx 512 --chunks N -o OUT/i.gguf", "layers", 1, "f16.gguf"),
    Command("validate", "validate OUT/q4_k_m.gguf --reference MODEL --text TEXT --ctx 512 --chunks N", "layers", 2,
            "q4_k_m.gguf"),
    Command("export q4_k_m, importance", f"export MODEL --target gguf-q4km --no-refine {TAKEN} -o OUT/i4.gguf",
            "layers", 1),
    Command("export q4_k_m, refined (curvature)", f"export MODEL --target gguf-q4km --refine {TAKEN} -o OUT/r4.gguf",
            "layers", 3),
    _passed("prune, magnitude", "prune:method=magnitude,sparsity=0.5", reads=False),
    _passed("prune, wanda", "prune:method=wanda,sparsity=0.5"),
    _passed("prune, sparsegpt", "prune:method=sparsegpt,sparsity=0.5"),
    _passed("gptq", "gptq"),
    _passed("awq", "awq"),
    _passed("smooth", "smooth"),
    _passed("lowrank, svd", "lowrank:method=svd,rank=256", reads=False),
    _passed("lowrank, whitened", "lowrank:method=whitened,rank=256"),
    Command("edge-nf4", "export MODEL --target edge-nf4 -o OUT/nf4.gguf"),
    Command("edge-ternary", "export MODEL --target edge-ternary -o OUT/t.gguf"),
    Command("edge-vptq3", "export MODEL --target edge-vptq3 -o OUT/v.gguf"),
    Command("edge-vptq3, calibrated", f"export MODEL --target edge-vptq3 {TAKEN} -o OUT/vc.gguf", "layers", 1),
    Command("edge-trajectory", "export MODEL --target edge-trajectory -o OUT/tr.gguf"),
    Command("edge-bezier4", "export MODEL --target edge-bezier4 -o OUT/b.gguf"),
    # As a model of 8 B is searched if nothing is said; the model measured is too small for `auto` to be that.
    Command("edge-seedlm4", "export MODEL --target edge-seedlm4:search=pruned -o OUT/s.gguf"),
    Command("edge-seedlm4, calibrated", f"export MODEL --target edge-seedlm4:search=pruned {TAKEN} -o OUT/sc.gguf",
            "layers", 1),
    Command("edge-seedlm4, exhaustive", "export MODEL --target edge-seedlm4:search=exhaustive -o OUT/se.gguf"),
    Command("wire, 4 bits", f"export MODEL --target wire --bits 4 {TAKEN} -o OUT/w.edgepack", "layers", 3),
)  # fmt: skip


def weights_of(shape: LlamaShape) -> int:
    """Weights of all tensors."""
    return sum(prod(spec.shape) for spec in shape.specs().values())


def run(arguments: list[str], limit: int = 0) -> tuple[float, int, bool]:
    """(processor seconds, peak bytes, whether `limit` ended it) of a command in a process of its own."""
    call = [sys.executable, "-c", _CHILD, str(limit), *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, _ENDED):
        raise SystemExit(f"edgepack {' '.join(arguments)}: {done.stderr}")
    seconds, peak, _code = done.stderr.strip().splitlines()[-1].split()
    return float(seconds), int(peak), done.returncode == _ENDED


def product_rate() -> float:
    """Multiply-adds a second of a float32 product of this width, on one core, by processor time."""
    import torch

    torch.set_num_threads(1)
    left, right = torch.randn(1024, 4096), torch.randn(4096, 4096)
    left @ right
    started = time.process_time()
    for _ in range(4):
        left @ right
    return 4 * 1024 * 4096 * 4096 / (time.process_time() - started)


def whole_seconds(command: Command, row: Row) -> float:
    """What the command would take on the whole model: processor seconds."""
    share = weights_of(WHOLE) / weights_of(ONE_LAYER) if command.by == "weights" else LAYERS
    head = command.head * row.tokens * VOCABULARY * WHOLE.hidden / row.rate
    return row.start + max(0.0, row.seconds - row.start) * share + head


def kept_rows(path: Path) -> dict[str, Row]:
    """Name → row, of everything that was measured."""
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return {each["name"]: Row(**each) for each in found}


def keep(path: Path, row: Row) -> None:
    """Keep a row in place of the one of its name."""
    rows = kept_rows(path) | {row.name: row}
    written = path.with_suffix(".partial")
    written.write_text(json.dumps([asdict(each) for each in rows.values()], indent=1) + "\n")
    written.replace(path)


class Measuring:
    """One run of this tool.

    Args:
        options: of the command line.
        folder: for the model and what commands make.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        model = folder / "model"
        if not (model / "config.json").is_file():
            write_random(model, ONE_LAYER)
        self._words = {"MODEL": str(model), "TEXT": str(options.text), "OUT": str(folder), "N": str(options.sequences)}
        self._rate, self._start, self._commit = product_rate(), run(["--version"])[0], current_commit()

    def row(self, command: Command) -> Row:
        """Measure a command; what it reads is made before, and measured too where it is none of what is kept."""
        if command.reads and not (self._folder / command.reads).is_file():
            maker = next(each for each in COMMANDS if each.arguments.endswith(f"-o OUT/{command.reads}"))
            keep(self._options.results, self.row(maker))
        arguments = [self._said(part) for part in command.arguments.split()]
        for made in (arguments[place + 1] for place, part in enumerate(arguments) if part == "-o"):
            Path(made).unlink(missing_ok=True)
        seconds, peak, ended = run(arguments, self._options.limit)
        tokens = PASS_TOKENS if command.name.startswith("pass ") else 512 * self._options.sequences
        day = dt.datetime.now(dt.timezone.utc).date().isoformat()
        return Row(command.name, seconds, ended, peak, self._start, tokens, self._rate, self._commit, day)

    def _said(self, part: str) -> str:
        return re.sub(r"^(MODEL|TEXT|OUT|N)\b", lambda found: self._words[found[0]], part)


def print_table(rows: dict[str, Row]) -> None:
    """Every command that is kept, in the order of `COMMANDS`, and which would take too long."""
    print(
        "| command | one layer, core-seconds | peak memory | 8 B, core-time | 8 B on 2 cores | multiplied by | commit |"
    )
    print("|---|---|---|---|---|---|---|")
    late = []
    for command in COMMANDS:
        if (row := rows.get(command.name)) is None:
            continue
        whole, least = whole_seconds(command, row), "over " if row.ended else ""
        late += [command.name] if row.ended or whole > CORES * LIMIT_HOURS * 3600 else []
        factor = f"{command.by}{' and the head' if command.head else ''}"
        cells = [command.name, f"{least}{row.seconds:.1f}", format_size(row.peak), f"{least}{format_duration(whole)}",
                 f"{least}{format_duration(whole / CORES)}", factor, row.commit]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nOver {LIMIT_HOURS} hours on {CORES} cores, or ended at the limit: {', '.join(late) or 'none'}.")
    missing = [command.name for command in COMMANDS if command.name not in rows]
    print(f"Not measured yet: {', '.join(missing) or 'none'}.")


def main() -> None:
    """Measure what is asked for and not kept yet; print all that is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression of names")
    parser.add_argument("--text", type=Path, default=OWN_WORDS)
    parser.add_argument("--sequences", type=int, default=32, help="of 512 tokens, for calibration; 32")
    parser.add_argument("--folder", type=Path, help="for the model and the files, which then stay; a temporary one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are kept")
    parser.add_argument("--limit", type=int, default=0, help="core-seconds after which a command is ended; 0: none")
    parser.add_argument("--again", action="store_true", help="measure what is kept already too")
    parser.add_argument("--print", dest="prints", action="store_true", help="print what is kept, measure nothing")
    options = parser.parse_args()
    if not options.prints:
        known = {} if options.again else kept_rows(options.results)
        chosen = [each for each in COMMANDS if re.search(options.only, each.name) and each.name not in known]
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary)
            folder.mkdir(exist_ok=True)
            measuring = Measuring(options, folder)
            for command in chosen:
                row = measuring.row(command)
                keep(options.results, row)
                print(f"{row.name}: {row.seconds:.1f} core-seconds", file=sys.stderr, flush=True)
    print_table(kept_rows(options.results))


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
