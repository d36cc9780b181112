"""Measures speed as llama-bench does, and keeps the results of this machine; printing is left to the command."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.install.cache_folder import cache_folder
from edgepack.edge.llama.engines import choose_engine, open_model
from edgepack.edge.llama.options import kv_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.edge.llama.engine import EngineWish
    from edgepack.edge.llama.options import RuntimeOptions

PROMPT_TOKENS, GENERATED_TOKENS = 512, 128  # pp512 and tg128, llama-bench's defaults
_SEED = 1


@dataclass(frozen=True)
class Speed:
    """Tokens per second over repetitions.

    Attributes:
        n: tokens of one repetition.
        tokens_per_second: the median.
        least, most: the extremes.
        deviation: standard deviation; 0.0 for one repetition.
        repetitions: how many.
    """

    n: int
    tokens_per_second: float
    least: float
    most: float
    deviation: float
    repetitions: int


@dataclass(frozen=True)
class BenchResult:
    """One measurement of one model on one machine.

    Attributes:
        model: the file's name.
        model_bytes: its length.
        device: where it ran.
        threads: as given to llama.cpp.
        n_gpu_layers: on the GPU.
        kv_type: of the KV cache.
        llama_cpp: version of the library.
        time: seconds since the epoch.
        pp, tg: prompt processing and generation.
        load_seconds: from the call to a model that is ready.
        first_token_seconds: from a prompt of `pp.n` tokens to the first token of the answer, the model loaded.
        peak_memory_bytes: of the process, libraries and mapped pages included.
    """

    model: str
    model_bytes: int
    device: str
    threads: int
    n_gpu_layers: int
    kv_type: str
    llama_cpp: str
    time: float
    pp: Speed
    tg: Speed
    load_seconds: float
    first_token_seconds: float
    peak_memory_bytes: int


def measure(
    path: Path, options: RuntimeOptions, device: str, *, repetitions: int = 5,
    n_prompt: int = PROMPT_TOKENS, n_generate: int = GENERATED_TOKENS, name: str | None = None,
) -> BenchResult:  # fmt: skip
    """Open the model and time it.

    Random tokens are evaluated, one warm-up run before each kind, as in llama-bench; llama-cpp-python samples none.

    Args:
        path: the GGUF.
        options: how to open it; the context must hold `n_prompt` and `n_generate` tokens.
        device: names the machine in the result.
        repetitions: of each kind.
        n_prompt: tokens of a prompt.
        n_generate: tokens generated.
        name: of the model; the file's by default.
    """
    started = time.perf_counter()
    with open_model(path, options) as model:
        load_seconds = time.perf_counter() - started
        rng = np.random.default_rng(_SEED)
        prompt = rng.integers(0, model.n_vocab, n_prompt, dtype=np.int32)
        answer = rng.integers(0, model.n_vocab, n_generate, dtype=np.int32)
        pp = _repeat(n_prompt, repetitions, lambda: model.prompt_seconds(prompt.tolist()))
        tg = _repeat(n_generate, repetitions, lambda: model.generation_seconds(answer.tolist()))
        unseen = rng.integers(0, model.n_vocab, n_prompt, dtype=np.int32)
        first = time.perf_counter()
        next(model.generate(unseen.tolist(), max_tokens=1), None)
        first_token_seconds = time.perf_counter() - first
        threads = model.threads
    return BenchResult(
        model=name or path.name,
        model_bytes=path.stat().st_size,
        device=device,
        threads=threads,
        n_gpu_layers=options.n_gpu_layers,
        kv_type=kv_name(options.kv_type_k, options.kv_type_v),
        llama_cpp=library_version(options.engine),
        time=time.time(),
        pp=pp,
        tg=tg,
        load_seconds=load_seconds,
        first_token_seconds=first_token_seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _repeat(n: int, repetitions: int, run: Callable[[], float]) -> Speed:
    run()  # warm-up
    speeds = [n / run() for _ in range(repetitions)]
    deviation = statistics.stdev(speeds) if len(speeds) > 1 else 0.0
    return Speed(n, statistics.median(speeds), min(speeds), max(speeds), deviation, repetitions)


def library_version(wish: EngineWish = "auto") -> str:
    """The engine that would run, its version and llama.cpp's own."""
    facts = choose_engine(wish).facts()
    return f"{facts.name} {facts.version} ({facts.build.partition(';')[0]})"


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def results_path() -> Path:
    """Where results are kept, one JSON object a line."""
    return cache_folder() / "bench.jsonl"


def append_result(result: BenchResult) -> None:
    """Keep a result."""
    with results_path().open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(result)) + "\n")


def earlier_result(result: BenchResult) -> BenchResult | None:
    """The latest kept result of the same model on the same device before `result`."""
    found = None
    for line in results_path().read_text(encoding="utf-8").splitlines() if results_path().exists() else []:
        try:
            record = json.loads(line)
            kept = BenchResult(**{**record, "pp": Speed(**record["pp"]), "tg": Speed(**record["tg"])})
        except (ValueError, KeyError, TypeError):
            continue  # a line of another version, or torn by a kill
        if (kept.model, kept.device) == (result.model, result.device) and kept.time < result.time:
            found = kept
    return found
