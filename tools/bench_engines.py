"""Both engines in `edgepack run` beside each package called bare, each a process of its own: start, speed, memory.

Judging ratios within one process is `bench_runtime`'s, which prints this table too; several streams at once are
`bench_server`'s.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "It was the best of times, it was"
CONTEXT = 512
BARE_LLAMA_CPP_PYTHON = """
import sys
from llama_cpp import Llama
path, prompt, tokens, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
llama = Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
count = 0
for part in llama(prompt, max_tokens=tokens, temperature=0, repeat_penalty=1.0, stream=True):
    print('>' + part['choices'][0]['text'], end='', flush=True)
    count += part['choices'][0]['finish_reason'] is None
print(count, 'tokens', file=sys.stderr)
"""
BARE_XLLAMACPP = """
import os, sys, tempfile, xllamacpp
path, prompt, tokens, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
values = xllamacpp.CommonParams()
values.model.path, values.n_ctx, values.n_parallel = path, 512, 1
values.cpuparams.n_threads = values.cpuparams_batch.n_threads = threads
values.verbosity, values.warmup, values.ui, values.fit_params = -1, False, False, False
count = 0
def shown(part):
    global count
    if not isinstance(part, dict) or 'choices' not in part:
        return
    print('>' + part['choices'][0]['text'], end='', flush=True)
    count += part['choices'][0].get('finish_reason') is None
with tempfile.TemporaryDirectory() as folder:
    values.hostnames = [os.path.join(folder, 'e.sock')]
    server = xllamacpp.Server(values)
    request = {'prompt': prompt, 'max_tokens': tokens, 'temperature': 0, 'stream': True}
    server.handle_completions(request, shown)
print(count, 'tokens', file=sys.stderr, flush=True)
os._exit(0)
"""
BUSY = "while True: pass"
# A process of its own: a child's peak begins with what its parent held when it was forked.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@dataclass(frozen=True)
class Program:
    """Something that completes a prompt.

    Attributes:
        name: in the table.
        command: that starts it; what it prints to stderr has `N tokens`.
        echoed: bytes of output before those of the answer.
    """

    name: str
    command: tuple[str, ...]
    echoed: int


@dataclass(frozen=True)
class Seen:
    """One run: seconds to the first token, tokens a second behind it."""

    first: float
    rate: float


@dataclass
class Measured:
    """All runs of a program, on a machine left alone and beside a process that keeps a core busy; MB at its peak."""

    memory: float
    idle: list[Seen] = field(default_factory=list)
    busy: list[Seen] = field(default_factory=list)


def programs(gguf: Path, archive: Path, threads: int, tokens: int) -> list[Program]:
    """Ours with each engine, on the archive, and both packages alone, on its GGUF."""
    asked = ("--raw", "--prompt", PROMPT, "--temperature", "0", "--max-tokens", str(tokens), "--ctx", str(CONTEXT))
    run = (sys.executable, "-m", "edgepack", "run", str(archive), *asked)
    run += ("--threads", str(threads)) if threads else ()
    bare = (str(gguf), PROMPT, str(tokens), str(threads or os.cpu_count() or 1))
    return [
        Program("edgepack run, llama-cpp-python", (*run, "--engine", "llama-cpp-python"), len(PROMPT)),
        Program("llama-cpp-python bare", (sys.executable, "-c", BARE_LLAMA_CPP_PYTHON, *bare), 0),
        Program("edgepack run, xllamacpp", (*run, "--engine", "xllamacpp"), len(PROMPT)),
        Program("xllamacpp bare", (sys.executable, "-c", BARE_XLLAMACPP, *bare), 0),
    ]


def see(program: Program) -> Seen:
    """One run of a program.

    Raises:
        SystemExit: it failed, or answered nothing.
    """
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(program.command, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout is not None
        seen, first, last = 0, 0.0, started
        while block := os.read(process.stdout.fileno(), 4096):
            seen += len(block)
            if seen > program.echoed:
                last = time.perf_counter()
                first = first or last
        process.wait()
        process.stdout.close()
        log.seek(0)
        told = log.read().decode(errors="replace")
    if process.returncode or not first or " tokens" not in told:
        raise SystemExit(f"{program.name}: it failed: {told[-500:]}")
    count = int(told.split(" tokens")[0].split()[-1])
    return Seen(first - started, (count - 1) / max(last - first, 1e-9))


def peak_memory(program: Program) -> float:
    """MB that a program held at most."""
    told = subprocess.run([sys.executable, "-c", PEAK, *program.command], check=True, capture_output=True, text=True)
    return int(told.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e6  # getrusage: bytes on macOS


def measure(wanted: list[Program], rounds: int) -> list[tuple[str, Measured]]:
    """Programs in turns, after one run of each for its memory: then files and bytecode are in the cache."""
    found = [(program.name, Measured(peak_memory(program))) for program in wanted]
    for _ in range(rounds):
        for program, (_name, measured) in zip(wanted, found, strict=True):
            measured.idle.append(see(program))
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        for _ in range(rounds):
            for program, (_name, measured) in zip(wanted, found, strict=True):
                measured.busy.append(see(program))
    finally:
        busy.kill()
        busy.wait()
    return found


def table(found: list[tuple[str, Measured]], model: str) -> str:
    """Medians of speed and memory, the least of the first tokens, to which other work only adds."""
    heads = (model, "tokens/s", "one core busy", "start to first token, s", "one core busy, s", "peak memory, MB")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, measured in found:
        rates = [statistics.median(one.rate for one in runs) for runs in (measured.idle, measured.busy)]
        first = [min(one.first for one in runs) for runs in (measured.idle, measured.busy)]
        cells = [f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{first[0]:.2f}", f"{first[1]:.2f}", f"{measured.memory:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
