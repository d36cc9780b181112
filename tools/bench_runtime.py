"""The runtime beside both engines called bare, and installing beside unpacking: ours, theirs, the ratio.

Each pair is measured A B A B in this one run; medians of speeds are compared, and the best of the latencies, to which
other work on the machine only adds. After that two tables, one a model, of `bench_engines`: each program started anew,
on a machine left alone and with one core busy.
Run: python tools/bench_runtime.py [--rounds 5] [--json] [--figure runtime,runtime-books,runtime-118m]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench_engines import CONTEXT, PROMPT, measure, programs, see, table
from tiny_models import Shape, write_random

from edgepack.edge.install.cache import ModelCache
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.edge.llama.server_engine.model import ServerModel
from edgepack.gguf.types import GGMLType
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.unpack import unpack_archive

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 128


@dataclass(frozen=True)
class Comparison:
    """Medians of ours and theirs; `bound` says what must hold."""

    what: str
    unit: str
    ours: float
    theirs: float
    bound: str
    holds: bool


def alternate(
    rounds: int,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    summary: Callable[[list[float]], float] = statistics.median,
) -> tuple[float, float]:
    """Summaries of A B A B …, after one unmeasured round of each."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return summary([a for a, _b in pairs]), summary([b for _a, b in pairs])


def compare_generation(name: str, path: Path, threads: int, rounds: int) -> Comparison:
    """Greedy tokens per second, prompt evaluation and detokenizing included, in one process."""
    from llama_cpp import Llama

    bare = Llama(str(path), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)
    # Neither may end early: the end-of-text token is made impossible in both.
    endless = {bare.token_eos(): -1e9}
    with LoadedModel(path, RuntimeOptions(n_ctx=CONTEXT, threads=threads, max_outputs=1)) as model:
        ids = model.tokenize(PROMPT)

        def ours() -> float:
            model.clear()
            started = time.perf_counter()
            count = sum(1 for _ in model.generate(ids, SamplingOptions(temperature=0), TOKENS))
            return count / (time.perf_counter() - started)

        def theirs() -> float:
            bare.reset()
            started = time.perf_counter()
            answer = bare.create_completion(
                ids, max_tokens=TOKENS, temperature=0, repeat_penalty=1.0, logit_bias=endless
            )
            return answer["usage"]["completion_tokens"] / (time.perf_counter() - started)

        a, b = alternate(rounds, ours, theirs)
    bare.close()
    return Comparison(f"generation, {name}", "tokens/s", a, b, "ratio >= 0.97", a / b >= 0.97)


def compare_server_engine(name: str, path: Path, threads: int, rounds: int) -> Comparison:
    """As `compare_generation`, with xllamacpp: our model over its routes beside its own class."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(path), CONTEXT, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.verbosity, parameters.warmup, parameters.ui = -1, False, False
    with tempfile.TemporaryDirectory() as folder, ServerModel(path, RuntimeOptions(CONTEXT, threads=threads)) as model:
        parameters.hostnames = [str(Path(folder) / "e.sock")]
        bare = xllamacpp.Server(parameters)
        ids = model.tokenize(PROMPT)

        def ours() -> float:
            started = time.perf_counter()
            count = sum(1 for _ in model.generate(ids, SamplingOptions(temperature=0), TOKENS))
            return count / (time.perf_counter() - started)

        def theirs() -> float:
            pieces: list[object] = []
            request = {"prompt": ids, "max_tokens": TOKENS, "temperature": 0, "stream": True}
            started = time.perf_counter()
            bare.handle_completions(request, pieces.append)
            return (len(pieces) - 1) / (time.perf_counter() - started)

        a, b = alternate(rounds, ours, theirs)
    return Comparison(f"generation by xllamacpp, {name}", "tokens/s", a, b, "ratio >= 0.8", a / b >= 0.8)


def compare_first_token(gguf: Path, archive: Path, threads: int, rounds: int) -> list[Comparison]:
    """From the command to the first token, the model installed before, for each engine."""
    ours, bare, ours_server, bare_server = programs(gguf, archive, threads, 2)
    found = []
    for what, one, other in (("", ours, bare), (" by xllamacpp", ours_server, bare_server)):
        a, b = alternate(rounds, lambda one=one: see(one).first, lambda other=other: see(other).first, min)  # type: ignore[misc]
        found.append(Comparison(f"start to first token{what}", "s", a, b, "ours <= bare + 0.3 s", a <= b + 0.3))
    return found


def compare_install(folder: Path, rounds: int) -> Comparison:
    """Bytes restored per second by installing and by unpacking."""
    shape = Shape(layers=12, width=1024, heads=16, kv_heads=8, head_width=64, feed_forward=4096, type=GGMLType.Q8_0)
    model = write_random(folder / "large.gguf", shape)
    archive = pack_archive(model, folder / "large.edgepack").output
    size = model.stat().st_size
    number = 0

    def install() -> float:
        nonlocal number
        number += 1
        cache = ModelCache(folder / f"cache{number}")
        started = time.perf_counter()
        installed = cache.install(archive)
        speed = size / (time.perf_counter() - started)
        installed.model.unlink()
        return speed / 1e6

    def unpack() -> float:
        started = time.perf_counter()
        result = unpack_archive(archive, folder / "unpacked.gguf")
        speed = size / (time.perf_counter() - started)
        result.output.unlink()
        return speed / 1e6

    a, b = alternate(rounds, install, unpack)
    return Comparison(f"install beside unpack, {size / 1e6:.0f} MB", "MB/s", a, b, "ratio >= 0.8", a / b >= 0.8)


def exported(folder: Path, target: str) -> Path:
    """The bundled model as a GGUF."""
    out = folder / f"{target}.gguf"
    model = ROOT / "tests/data/books-llama-6m"
    subprocess.run(
        [sys.executable, "-m", "edgepack", "export", str(model), "--target", target, "-o", str(out)],
        check=True, capture_output=True,
    )  # fmt: skip
    return out


def main() -> int:
    """Measure, print, and say with the exit code whether every bound holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EDGEPACK_CACHE"] = str(folder / "cache")
        # Compiled once, as an installed package is: an environment may forbid Python to keep its bytecode.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        small = exported(folder, "gguf-q5km")
        medium = write_random(
            folder / "medium.gguf",
            Shape(layers=8, width=1024, heads=16, kv_heads=4, head_width=64, feed_forward=4096, n_vocab=0,
                  context=2048, type=GGMLType.Q4_K),
        )  # fmt: skip
        archive = pack_archive(small, folder / "small.edgepack").output
        results = [
            compare_generation("books-llama-6m Q5_K_M", small, arguments.threads, arguments.rounds),
            compare_generation("random 118M Q4_K", medium, arguments.threads, arguments.rounds),
            compare_server_engine("books-llama-6m Q5_K_M", small, arguments.threads, arguments.rounds),
            compare_server_engine("random 118M Q4_K", medium, arguments.threads, arguments.rounds),
            *compare_first_token(small, archive, arguments.threads, arguments.rounds),
            compare_install(folder, arguments.rounds),
        ]
        large = pack_archive(medium, folder / "medium.edgepack").output
        beside = [
            table(measure(programs(gguf, packed, arguments.threads, TOKENS), arguments.rounds), name)
            for name, gguf, packed in (("books-llama-6m Q5_K_M", small, archive), ("random 118M Q4_K", medium, large))
        ]
    if arguments.json:
        print(json.dumps([result.__dict__ for result in results]))
    else:
        print("| | edgepack | bare | ratio | bound | |\n|---|---|---|---|---|---|")
        for result in results:
            verdict = "holds" if result.holds else "FAILS"
            figures = f"{result.ours:.2f} | {result.theirs:.2f} | {result.ours / result.theirs:.2f}"
            print(f"| {result.what}, {result.unit} | {figures} | {result.bound} | {verdict} |")
        for lines in beside:
            print(f"\n{lines}")
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
