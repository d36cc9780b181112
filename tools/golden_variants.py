"""Writes the golden files of the GGUF variant.

    python tools/golden_variants.py tests/golden/variant

Run it only when the variant's version changes; files of earlier versions stay, and must decode for ever.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from edgepack.edge.install.native import plan_native, write_native
from edgepack.export.coded.plan import plan_variant
from edgepack.export.coded.write import write_variant
from edgepack.export.mapped import MappedModel
from edgepack.export.rows import ArrayRows
from edgepack.gguf.types import GGMLType, string
from edgepack.gguf.variant import VERSION
from edgepack.quant.codecs.targets import find_edge_target
from edgepack.quant.types.mixtures import ModelFacts

TARGETS = (
    "nf4", "ternary", "ternary:scale=row", "ternary:scale=tensor", "seedlm4", "seedlm3", "seedlm4:register_bits=7",
    "vptq2", "vptq3:residual=yes,outliers=0.1,normalise=row", "vptq4:vector=2,normalise=column", "trajectory",
    "trajectory:points=100,classes=1", "bezier", "bezier4", "nf4+vptq2",
)  # fmt: skip


def model() -> MappedModel:
    """Three small tensors: a matrix, one with odd rows, a vector that stays plain."""
    generator = np.random.default_rng(2026)

    def normal(*shape: int) -> ArrayRows:
        return ArrayRows(generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02))

    tensors = {
        "blk.0.attn_norm.weight": normal(64),
        "blk.0.attn_q.weight": normal(24, 64),
        "blk.0.ffn_down.weight": normal(7, 43),
    }
    metadata = {"general.architecture": string("llama"), "general.name": string("golden")}
    return MappedModel("golden", metadata, tensors, ModelFacts("llama", 1, 4, 4))


def main() -> None:
    """Write one file a target, and the digests of what they decode to."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for target in TARGETS:
        name = f"v{VERSION}-{target.replace(':', '-').replace('=', '').replace(',', '-').replace('+', '-then-')}.gguf"
        write_variant(plan_variant(model(), find_edge_target(target)), folder / name)
        with tempfile.TemporaryDirectory() as temporary:
            plain = Path(temporary) / "plain.gguf"
            write_native(plan_native(folder / name, GGMLType.F32), plain)
            digests[name] = hashlib.sha256(plain.read_bytes()).hexdigest()
    (folder / "digests.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
