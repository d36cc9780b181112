"""What fits where, predicted: full-size shapes on devices with small memories, as `edgepack fit` tells it.

    python tools/bench_fit.py
    python tools/bench_fit.py --shapes 'llama 8B' --devices gtx-1660,apple-m1 --ctx 4096

The models are sparse files: a header and a length, no weights. Memory is held against llama.cpp by `fit_truth`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from figure_file import run_with_figure
from fit_truth import FULL
from tiny_models import write_sparse

import edgepack
from edgepack.quantities import format_size

COLUMNS = ("shape", "device", "memory", "KV cache", "layers on the GPU", "tokens/s", "largest context f16 / q8_0")


def row(path: Path, name: str, device: str, ctx: int) -> list[str]:
    """The cells of one shape on one device."""
    found = edgepack.fit(path, device=device, ctx=ctx)
    speed = "" if found.tokens_per_second is None else f"{found.tokens_per_second:.0f}"
    contexts = [edgepack.fit(path, device=device, ctx=ctx, kv_type=kind) for kind in ("f16", "q8_0")]
    largest = " / ".join(f"{fit.largest_ctx[fit.kv_type]:,}" for fit in contexts)
    layers = f"{found.n_gpu_layers} of {found.layers}"
    return [name, found.device_name, format_size(found.memory.total), found.kv_type, layers, speed, largest]


def main() -> None:
    """Print a row for each shape on each device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llama 3B,llama 8B", help=f"of {', '.join(FULL)}")
    parser.add_argument("--devices", default="gtx-1660,rtx-3060")
    parser.add_argument("--ctx", type=int, default=8192)
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    with tempfile.TemporaryDirectory() as folder:
        for device in options.devices.split(","):
            for name in options.shapes.split(","):
                path = write_sparse(Path(folder) / "model.gguf", FULL[name])
                print(f"| {' | '.join(row(path, name, device, options.ctx))} |")


if __name__ == "__main__":
    run_with_figure(main)
