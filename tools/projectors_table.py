"""Prints docs/sources.md's table of projectors: classes, and how far images' embeddings are from transformers'.

    python tools/projectors_table.py                       measure every kind
    python tools/projectors_table.py --figure projectors   keep the table for the document (then: make figures)

The oracle is transformers in float64 on tiny random checkpoints (tests/references/tiny_projectors.py), against the
exported projector run by llama.cpp's mtmd on the same image.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from figure_file import run_with_figure

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("f32", "f16", "bf16", "q8_0")
HEADER = "| projector | classes | " + " | ".join(KINDS) + " |\n|---|---|" + "---|" * len(KINDS)


def measured(eyes: Any, scratch: Path) -> tuple[str, dict[str, tuple[float, float]]]:
    """The projector's type, and for each type of file (largest error, root mean square) in standard deviations."""
    from references.family_oracle import exported
    from references.tiny_projectors import distance_of, error_of, expected_embeddings, picture, seen, write_eyes

    from edgepack.edge.llama.options import RuntimeOptions
    from edgepack.edge.llama.runtime import LoadedModel
    from edgepack.export.checkpoint import open_checkpoint
    from edgepack.export.gguf_file import write_gguf
    from edgepack.export.projector import map_projector, plan_projector

    model = write_eyes(eyes, scratch / "model", ROOT / "tests/data/books-llama-6m")
    image = picture(eyes)
    expected = expected_embeddings(eyes, model, image)
    mapped = map_projector(open_checkpoint(scratch / "model"))
    found = {}
    with LoadedModel(exported(scratch / "model", scratch / "text.gguf"), RuntimeOptions(n_ctx=256, threads=1)) as text:
        for kind in KINDS:
            write_gguf(plan_projector(mapped, kind), scratch / f"{kind}.gguf")
            pieces = seen(scratch / f"{kind}.gguf", text, image)
            found[kind] = (
                max(error_of(piece, expected) for piece in pieces),
                max(distance_of(piece, expected) for piece in pieces),
            )
    return mapped.projector.name, found


def main() -> None:
    """Measure every kind and print the table; of several models of a kind the largest errors stand."""
    sys.path[:0] = [str(ROOT / "tests")]
    import torch
    import transformers
    from references.tiny_projectors import EYES

    from edgepack.export.projector import projectors

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    classes: dict[str, set[str]] = {}
    for name, projector in projectors().items():
        classes.setdefault(projector.name, set()).add(name)
    for eyes in EYES:
        with tempfile.TemporaryDirectory() as scratch:
            kind, found = measured(eyes, Path(scratch))
        classes.setdefault(kind, set()).add(f"{eyes.model.family}{eyes.model.head}")
        before = rows.setdefault(kind, found)
        rows[kind] = {each: tuple(map(max, before[each], found[each])) for each in KINDS}  # type: ignore[misc]
    print(HEADER)
    for kind, found in sorted(rows.items()):
        cells = (f"{largest:.0e} ({together:.0e})" for largest, together in found.values())
        print(f"| `{kind}` | {', '.join(sorted(classes[kind]))} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_with_figure(main)
