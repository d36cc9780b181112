"""Peak memory of the command that asks a cluster, for models of one width and twice as many blocks each time.

    python tools/bench_cluster_memory.py [--width 1024] [--blocks 2,4] [--figure NAME]

Each export is a process of its own on a local Ray node; what it takes beyond the first is what grows with the model.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from bench_wire import export
from cluster_digests import GPTQ_RECIPE
from figure_file import run_with_figure
from local_ray import local_ray
from synthetic_checkpoint import LlamaShape, write_llama


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", default="2,4")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ray-memory-"))
    try:
        recipe = folder / "gptq.toml"
        recipe.write_text(GPTQ_RECIPE, encoding="utf-8")
        print("| work | blocks | file | peak of the command |")
        print("|---|---|---|---|")
        with local_ray(1) as ray:
            for blocks in map(int, given.blocks.split(",")):
                shape = LlamaShape(given.width, blocks, 3 * given.width, given.width // 64, given.width // 256, 4096)
                model = write_llama(folder / f"{blocks}", shape)
                for work, options in (("gguf-q4km", ()), ("gguf-q4km after gptq", ("--recipe", str(recipe)))):
                    output = folder / "m.gguf"
                    asked = [str(model), "--target", "gguf-q4km", "-o", str(output), "--force", *options]
                    figures, _ = export([*asked, "--cluster", ray.address])
                    size = output.stat().st_size
                    print(f"| {work} | {blocks} | {size / 1e6:.1f} MB | {figures['peak'] / 1e6:.0f} MB |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run_with_figure(main)
