"""Export against llama.cpp's way: its f16 file, then `llama_model_quantize`; whole processes, in turns.

    python tools/bench_export.py                        1 B parameters to Q5_K_M, one turn
    python tools/bench_export.py --converter PATH --tokenizer MODEL     with llama.cpp's own convert_hf_to_gguf.py
    python tools/bench_export.py --imatrix             both with the same importance matrix, of random numbers
    python tools/bench_export.py --streaming            peak memory at 1 B and 4 B from tensors made on demand

Without --converter the f16 file is made by edgepack itself: faster than llama.cpp's converter, so the ratio
flatters the peer. The converter refuses tokenizers that it does not know, as the bundled model's: --tokenizer MODEL
gives the random model that of a model which it does. The last line is the squared error of ours over that of theirs,
weighted by importance where there is one, summed over some of each file's quantised tensors.

Peak memory is the largest process's; peak disk counts everything written but the model.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from synthetic_checkpoint import LlamaShape, parse_parameters, synthetic_llama, write_llama

from edgepack.export.mapped_model import open_model
from edgepack.gguf.reader import read_header
from edgepack.processors import default_threads
from edgepack.quant.calibration.importance import ImportanceEntry, ImportanceMatrix
from edgepack.quant.calibration.importance_file import read_importance, write_importance
from edgepack.quant.codecs.ggml.codec import dequantize_rows
from edgepack.quantities import format_duration, format_size


@dataclass(frozen=True)
class Cost:
    """What a way costs: seconds, seconds of all processors, bytes."""

    wall: float
    cpu: float
    memory: int
    disk: int

    def row(self, name: str) -> str:
        """One line of the table."""
        busy = self.cpu / self.wall / default_threads()
        return (
            f"{name:<34} {format_duration(self.wall):>14} {self.cpu:>9.1f} s {busy:>6.0%}"
            f" {format_size(self.memory):>10} {format_size(self.disk):>10}"
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder` that are there now."""
    with contextlib.suppress(FileNotFoundError):  # a file may be renamed while it is looked at
        return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
    return 0


def measure(commands: list[list[str]], folder: Path) -> Cost:
    """Run commands one after the other; the folder's largest size is sampled twice a second."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            peak[0] = max(peak[0], folder_bytes(folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        used = [usage_of(command) for command in commands]
        wall = time.perf_counter() - started
    finally:
        stop.set()
        watcher.join()
    cpu, memory = sum(seconds for seconds, _ in used), max(memory for _, memory in used)
    return Cost(wall, cpu, memory, max(peak[0], folder_bytes(folder)))


def usage_of(command: list[str]) -> tuple[float, int]:
    """(processor seconds, peak bytes) of a command; what it said where it fails ends this one."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}: exit {process.returncode}\n{said.read().decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def quantize(source: Path, out: Path, file_type: int, imatrix: Path | None) -> None:
    """llama.cpp's quantiser on all processors; run in a process of its own."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, default_threads()
    if imatrix is not None:
        means = {name: entry.means[0].copy() for name, entry in read_importance(imatrix).entries.items()}
        entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
        for entry, (name, weights) in zip(entries, means.items(), strict=False):
            entry.name, entry.size = name.encode(), weights.size
            entry.data = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    sys.exit(llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)))


def write_random_importance(model: Path, path: Path) -> Path:
    """An importance matrix of random numbers for every matrix of a model."""
    generator, entries = np.random.default_rng(0), {}
    for name, rows in open_model(model).tensors.items():
        if len(rows.shape) == 2:
            entries[name] = ImportanceEntry(512 * generator.lognormal(0, 1.5, (1, rows.shape[1])), np.array([512]))
    write_importance(path, ImportanceMatrix(entries, 1, 512, ("random",)))
    return path


def weighted_error(model: Path, file: Path, imatrix: Path | None) -> float:
    """Squared error of every fifth quantised tensor of `file`, columns weighted by importance where it is known."""
    known = {} if imatrix is None else read_importance(imatrix).entries
    header, source, error = read_header(file), open_model(model).tensors, 0.0
    quantised = [info for info in header.tensors if info.type.is_quantized]
    with file.open("rb") as stream:
        for info in quantised[::5]:
            stream.seek(header.data_start + info.offset)
            rows = dequantize_rows(info.type, stream.read(info.nbytes), info.rows, info.shape[-1])
            rows -= source[info.name].read(0, info.rows)
            weights = known[info.name].means[0] if info.name in known else np.ones(info.shape[-1])
            error += float(np.square(rows, dtype=np.float64).sum(0) @ weights)
    return error


def two_steps(model: Path, folder: Path, target: str, converter: Path | None, imatrix: Path | None) -> list[list[str]]:
    """llama.cpp's way: an f16 file as large as the model, then its quantiser."""
    from edgepack.quant.types.targets import find_target

    middle, out = folder / "f16.gguf", folder / "theirs.gguf"
    if converter:
        first = [sys.executable, str(converter), str(model), "--outtype", "f16", "--outfile", str(middle)]
    else:
        first = [sys.executable, "-m", "edgepack", "export", str(model), "--target", "f16", "-o", str(middle)]
    file_type = str(find_target(target).file_type)
    known = [] if imatrix is None else [str(imatrix)]
    return [first, [sys.executable, __file__, "--quantize", str(middle), str(out), file_type, *known]]


def write_model(folder: Path, parameters: int, tokenizer: Path | None) -> None:
    """A random Llama; with the tokenizer of another model, whose vocabulary it then has."""
    if tokenizer is None:
        write_llama(folder, LlamaShape.of_size(parameters))
        return
    vocabulary = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    write_llama(folder, LlamaShape.of_size(parameters, vocabulary))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


def compare(arguments: argparse.Namespace) -> None:
    """Both ways in turns over the same random Llama, as one table with ratios."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        model, work = Path(scratch) / "random-llama", Path(scratch) / "work"
        write_model(model, arguments.parameters, arguments.tokenizer)
        size = format_size((model / "model.safetensors").stat().st_size)
        print(f"random Llama, {size} of bf16, to {arguments.target}, {default_threads()} processors")
        print(f"{'':<34} {'wall':>14} {'cpu':>11} {'busy':>6} {'memory':>10} {'disk':>10}")
        out = work / "ours.gguf"
        ours_command = [sys.executable, "-m", "edgepack", "export", str(model), "--target", arguments.target]
        imatrix = write_random_importance(model, Path(scratch) / "imatrix.gguf") if arguments.imatrix else None
        ours_command += [] if imatrix is None else ["--imatrix", str(imatrix)]
        ratios, errors = [], {}
        for _ in range(arguments.turns):
            costs = []
            for commands in (
                two_steps(model, work, arguments.target, arguments.converter, imatrix),
                [[*ours_command, "-o", str(out)]],
            ):
                work.mkdir()
                costs.append(measure(commands, work))
                made = out if out.exists() else work / "theirs.gguf"
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
                    # Not here: the memory of what is started later would count from the peak of this process.
                    errors[made.stem] = apart.submit(weighted_error, model, made, imatrix).result()
                subprocess.run(["rm", "-r", str(work)], check=True)
            theirs, ours = costs
            print(theirs.row("llama.cpp: f16, then quantise"))
            print(ours.row("edgepack export"))
            ratios.append((ours.wall / theirs.wall, ours.cpu / theirs.cpu))
            print(
                f"{'ratio':<34} {ours.wall / theirs.wall:>14.2f} {ours.cpu / theirs.cpu:>11.2f} {'':>6}"
                f" {ours.memory / theirs.memory:>10.2f} {ours.disk / theirs.disk:>10.2f}"
            )
        print(f"weighted squared error, ours / theirs: {errors['ours'] / errors['theirs']:.4f}")


def streaming(arguments: argparse.Namespace) -> None:
    """Peak memory of an export whose source takes neither disk nor memory, at several sizes."""
    peaks = []
    for parameters in arguments.sizes:
        command = [sys.executable, __file__, "--stream", str(parameters), arguments.target]
        cost = measure([command], Path(tempfile.gettempdir()) / "absent")
        peaks.append(cost.memory)
        print(f"{parameters / 1e9:>6.1f} B parameters to {arguments.target}: {cost.row('')}")
    print(f"largest / smallest peak memory: {max(peaks) / min(peaks):.3f}")


def stream_to_nowhere(parameters: int, target: str) -> None:
    """Encode a synthetic Llama chunk by chunk as an export does, and throw the bytes away."""
    from edgepack.export.gguf_file import encoded_chunks
    from edgepack.export.mapped_model import map_checkpoint
    from edgepack.export.plan import plan_export
    from edgepack.processors import default_threads
    from edgepack.quant.types.targets import find_target

    plan = plan_export(map_checkpoint(synthetic_llama(LlamaShape.of_size(parameters))), find_target(target))
    written = sum(blocks.nbytes for _, blocks in encoded_chunks(plan.tensors, default_threads()))
    assert written == sum(info.nbytes for info in plan.infos)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=parse_parameters, default=10**9, help="such as 1b or 350m")
    parser.add_argument("--target", default="q5km")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument(
        "--tokenizer", type=Path, help="a model whose tokenizer the converter knows, for the random one"
    )
    parser.add_argument("--scratch", type=Path, help="folder for the model and the files; about 4 bytes a weight")
    parser.add_argument("--streaming", action="store_true")
    parser.add_argument("--sizes", type=parse_parameters, nargs="+", default=[10**9, 4 * 10**9])
    parser.add_argument("--imatrix", action="store_true", help="both with the same importance matrix")
    parser.add_argument("--quantize", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--stream", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quantize:
        source, out, file_type, *known = arguments.quantize
        quantize(Path(source), Path(out), int(file_type), Path(known[0]) if known else None)
    elif arguments.stream:
        stream_to_nowhere(int(arguments.stream[0]), arguments.stream[1])
    elif arguments.streaming:
        streaming(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    from figure_file import aligned_tables, run_with_figure

    run_with_figure(main, aligned_tables)
