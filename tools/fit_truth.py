"""Holds predicted memory against what llama.cpp reports, and writes the table that docs and tests keep.

Each row opens a model through llama.cpp and reads its log. Small models are really opened (weights, KV cache and
compute buffer are allocated); full-size shapes are sparse files opened in llama.cpp's planning mode, which reports
compute and KV but no weights. Run: python tools/fit_truth.py [--out tests/edge/fit_truth.json]
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_models import Shape, f32, write_sparse

from edgepack.edge.fit.devices import cpu_features
from edgepack.edge.fit.memory import MemoryRequest, compute_bytes, kv_layer_bytes, mapped_weights
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20
CAPS = {"gemma2.attn_logit_softcapping": f32(50.0), "gemma2.final_logit_softcapping": f32(30.0)}
Q4_K, F16, Q8_0, Q4_0, Q6_K = GGMLType.Q4_K, GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q6_K
SMALL = {
    "llama": Shape("llama", 3, 512, 8, 4, 64, 1536, 8000, 8192, Q4_K, Q6_K),
    "llama tied": Shape("llama", 3, 512, 8, 2, 64, 1536, 8000, 8192, Q4_K, tied=True),
    "llama f16": Shape("llama", 2, 768, 12, 12, 64, 2048, 32000, 4096, F16),
    "mixtral": Shape("llama", 2, 512, 8, 2, 64, 1024, 8000, 8192, Q4_0, experts=8),
    "qwen2": Shape("qwen2", 4, 896, 14, 2, 64, 4864, 16000, 32768, Q8_0, tied=True),
    "qwen3": Shape("qwen3", 4, 1024, 16, 8, 128, 3072, 16000, 40960, Q4_0),
    "gemma2": Shape("gemma2", 4, 768, 4, 2, 128, 2048, 16000, 8192, Q8_0, window=1024, extra=CAPS),
    "gemma3": Shape("gemma3", 7, 640, 4, 1, 256, 2048, 16000, 32768, Q4_0, window=512),
    "phi3": Shape("phi3", 3, 768, 8, 8, 96, 2048, 16000, 4096, F16),
    "gpt2": Shape("gpt2", 4, 768, 12, 12, 64, 3072, 50257, 1024, F16),
}
FULL = {
    "llama 3B": Shape("llama", 28, 3072, 24, 8, 128, 8192, 128256, 131072, Q4_K, tied=True),
    "llama 8B": Shape("llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072, Q4_K, Q6_K),
    "qwen2 7B": Shape("qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 32768, Q4_K, Q6_K),
    "gemma2 9B": Shape("gemma2", 42, 3584, 16, 8, 256, 14336, 256000, 8192, Q4_K, window=4096, extra=CAPS),
}
REQUESTS = {
    "small": [
        MemoryRequest(512),
        MemoryRequest(2048, n_ubatch=256, kv_type_k="q8_0", kv_type_v="q8_0"),
        MemoryRequest(4096, n_outputs=0, flash_attention=False),
        MemoryRequest(8192, n_batch=2048, n_ubatch=1024, kv_type_k="bf16", kv_type_v="bf16"),
    ],
    "full": [
        MemoryRequest(8192),
        MemoryRequest(32768, kv_type_k="q8_0", kv_type_v="q8_0"),
        MemoryRequest(4096, n_batch=2048, n_ubatch=2048, n_outputs=0),
        MemoryRequest(16384, n_ubatch=128, kv_type_k="q4_0", kv_type_v="q4_0"),
        MemoryRequest(4096, flash_attention=False),
    ],
}


@dataclass(frozen=True)
class Row:
    """One combination: bytes as predicted and as llama.cpp reports them (MiB with two decimals)."""

    model: str
    request: dict[str, object]
    weights: tuple[int, int]
    kv: tuple[int, int]
    compute: tuple[int, int]

    @property
    def worst(self) -> tuple[float, float]:
        """The largest deviation of the three as (share, MiB)."""
        pairs = [(predicted, told) for predicted, told in (self.weights, self.kv, self.compute) if told]
        share = max(abs(predicted - told) / told for predicted, told in pairs)
        return share, max(abs(predicted - told) for predicted, told in pairs) / MIB


def reported(log: str, what: str) -> int:
    """Bytes of all `what` lines of llama.cpp's log."""
    return round(sum(float(size) for size in re.findall(rf"{what} = +([\d.]+) MiB", log)) * MIB)


def measure(name: str, path: Path, request: MemoryRequest, *, simulated: bool) -> Row:
    """Open the model at `path` as `request` says and compare."""
    options = RuntimeOptions(
        n_ctx=request.n_ctx,
        n_batch=request.n_batch,
        n_ubatch=request.n_ubatch,
        threads=1,
        kv_type_k=request.kv_type_k,
        kv_type_v=request.kv_type_v,
        flash_attention="on" if request.flash_attention else "off",
        max_outputs=request.n_outputs,
        simulated=simulated,
    )
    with LoadedModel(path, options) as model:
        log = model.load_log
    header = read_header(path)
    shape = read_shape(header)
    kv = sum(kv_layer_bytes(shape, layer, request) for layer in shape.layers)
    told_kv = reported(log, "llama_kv_cache: size") + reported(log, "llama_memory_recurrent: size")
    weights = (0, 0) if simulated else (mapped_weights(header, cpu_features()), reported(log, "model buffer size"))
    compute = (compute_bytes(shape, request), reported(log, "compute buffer size"))
    return Row(name, {k: v for k, v in asdict(request).items() if k != "n_gpu_layers"}, weights, (kv, told_kv), compute)


def combinations() -> Iterator[tuple[str, Shape, MemoryRequest, bool]]:
    """Every row of the table: model, shape, request, and whether weights are only planned."""
    for name, shape in SMALL.items():
        for request in REQUESTS["small"]:
            yield name, shape, replace(request, n_ctx=min(request.n_ctx, shape.context)), False
    for name, shape in FULL.items():
        for request in REQUESTS["full"]:
            yield name, shape, replace(request, n_ctx=min(request.n_ctx, shape.context)), True


def main() -> None:
    """Measure every combination, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("predicted/reported, MiB")
    print(
        f"{'model':<11} {'ctx':>6} {'ubatch':>6} {'kv':>5} {'fa':>3}  {'weights':<15} {'KV':<15} {'compute':<15} worst"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, shape, request, simulated in combinations():
            row = measure(name, write_sparse(Path(folder) / "model.gguf", shape), request, simulated=simulated)
            rows.append(row)
            cells = " ".join(f"{p / MIB:7.2f}/{t / MIB:<7.2f}" for p, t in (row.weights, row.kv, row.compute))
            attention = "on" if request.flash_attention else "off"
            print(
                f"{name:<11} {request.n_ctx:>6} {request.n_ubatch:>6} {request.kv_type_k:>5} {attention:>3}  {cells} "
                f"{row.worst[0]:.2%} {row.worst[1]:.2f} MiB"
            )
    print(f"{len(rows)} combinations; worst: {max(row.worst[0] for row in rows):.2%}, "
          f"{max(row.worst[1] for row in rows):.2f} MiB")  # fmt: skip
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
