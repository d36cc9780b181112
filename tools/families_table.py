"""Prints docs/sources.md's table of families: classes, the oracle's largest error, what edgepack does with them.

    python tools/families_table.py                    the table, from the registry and tests/data/families.json
    python tools/families_table.py --measure          measure every family first, and keep what was found there
    python tools/families_table.py --measure qwen     those whose tiny models' names contain `qwen`
    python tools/families_table.py --missing          measure models and cells that the table does not have yet
    python tools/families_table.py --figure families  keep the table for the document (then: make figures)

The oracle is transformers in float64 on tiny random checkpoints against the f32 export run by llama.cpp.
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figure_file import all_figures, run_with_figure

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ROOT = Path(__file__).resolve().parent.parent
FOUND = ROOT / "tests/data/families.json"
HEADER = "| architecture | classes | largest error | tolerance | {} |\n|---|---|---|---|{}"


def read_figures() -> dict[str, Any]:
    """The figures that were kept: architecture → errors of its tiny models, classes, cells."""
    return json.loads(FOUND.read_text()) if FOUND.is_file() else {}


def table(figures: dict[str, Any]) -> str:
    """The table in Markdown; a dash stands for what was not measured."""
    sys.path[:0] = [str(ROOT / "tests")]
    from references.family_cells import CELLS

    from edgepack.export.rules.mapping import families

    classes: dict[str, list[str]] = {}
    for name, family in families().items():
        classes.setdefault(family.name, []).append(name)
    for name in figures:  # such as Granite 4's, which share a class with others
        classes.setdefault(name, figures[name]["classes"])
    kinds = _measured_projectors()
    lines = [HEADER.format(" | ".join((*CELLS, "mmproj")), "---|" * (len(CELLS) + 1))]
    for name in sorted(classes):
        found = figures.get(name, {})
        cells = [_cell(found.get("cells", {}).get(cell)) for cell in CELLS]
        every = sorted({*classes[name], *found.get("classes", [])})
        cells.append(eyes_cell(every, kinds))
        named = ", ".join(every)
        models = found.get("models", {}).values()
        error, tolerance = (
            f"{max(each[key] for each in models):.0e}" if models else "-" for key in ("error", "tolerance")
        )
        lines.append(f"| `{name}` | {named} | {error} | {tolerance} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measured_projectors() -> dict[str, set[str]]:
    """Model class → the projectors that were measured of it (tools/projectors_table.py), as the document names them."""
    found: dict[str, set[str]] = {}
    for kind, classes, *_errors in all_figures()["projectors"].rows:
        for name in classes.split(", "):
            found.setdefault(name, set()).add(kind)
    return found


def eyes_cell(classes: list[str], measured: Mapping[str, Collection[str]]) -> str:
    """What `--mmproj` does with a family's classes: the projectors that it writes, or why not; a dash where none sees.

    Args:
        classes: of the family.
        measured: model class → projectors, of those whose embeddings were held against transformers'.
    """
    seeing = [name for name in classes if name.endswith("ForConditionalGeneration")]
    written = sorted({kind for name in seeing for kind in measured.get(name, ())})
    refused = [f"no: {_refusal_of_projector(name)}" for name in seeing if name not in measured]
    return "; ".join(([f"yes: {', '.join(written)}"] if written else []) + refused) or "-"


def _refusal_of_projector(name: str) -> str:
    from edgepack.errors import UnsupportedModelError
    from edgepack.export.config import ModelConfig
    from edgepack.export.projector import find_projector

    try:
        find_projector(ModelConfig({"architectures": [name], "vision_config": {}}))
    except UnsupportedModelError as refusal:
        return str(refusal).removeprefix("--mmproj: ").partition(": llama.cpp's")[0]
    return f"the projector of {name} was not measured"


def _cell(reason: str | None) -> str:
    if not reason:
        return "-" if reason is None else "yes"
    return f"no: {reason.rpartition('cannot be read back into a checkpoint: ')[2].partition('. ')[0]}"


def measure(pattern: str, figures: dict[str, Any], *, missing: bool = False) -> None:
    """Measure tiny models whose names contain `pattern` and put what was found into `figures`.

    Args:
        pattern: part of a name.
        figures: what was found before; changed.
        missing: leave out what is there.
    """
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/export")]
    import torch
    import transformers
    from references.defined_models import DEFINED
    from references.tiny_encoders import EMBEDDERS, RANKERS
    from test_architectures import MODELS

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    fresh: set[str] = set()
    for tiny in (*MODELS, *EMBEDDERS, *RANKERS, *DEFINED):
        if pattern in tiny.name and not (missing and _is_complete(tiny.name, figures)):
            with tempfile.TemporaryDirectory() as folder:
                _measure_one(tiny, Path(folder), figures, fresh, missing=missing)


def _is_complete(tiny: str, figures: dict[str, Any]) -> bool:
    """Whether a model's error is known, and every cell of its architecture, for which the first model stands."""
    from references.family_cells import CELLS

    found = next((each for each in figures.values() if tiny in each["models"]), None)
    return found is not None and set(found["cells"]) >= set(CELLS)


def _measure_one(tiny: Any, scratch: Path, figures: dict[str, Any], fresh: set[str], *, missing: bool) -> None:
    from references.family_cells import CELLS, run_cell

    from edgepack.export.mapped_model import open_model

    folder = scratch / "model"
    error = _error(tiny, folder, scratch / "f32.gguf")
    name = open_model(folder).metadata["general.architecture"].value
    classes = json.loads((folder / "config.json").read_text())["architectures"]
    found = figures.setdefault(name, {"models": {}, "classes": [], "cells": {}})
    if name not in fresh:  # the first of an architecture stands for it
        fresh.add(name)
        known = found["cells"] if missing else {}
        left = [cell for cell in CELLS if cell not in known]
        found["cells"] = {
            **known,
            **{cell: run_cell(cell, folder, scratch).replace(f"{scratch}/", "") for cell in left},
        }
    found["models"][tiny.name] = {"error": error, "tolerance": tiny.tolerance}
    found["classes"] = sorted({*found["classes"], *classes})
    refused = "; ".join(f"{cell}: {reason}" for cell, reason in found["cells"].items() if reason)
    print(f"{tiny.name}: {name}, {error:.1e} of {tiny.tolerance:.0e}. {refused}", file=sys.stderr, flush=True)


def _error(tiny: Any, folder: Path, out: Path) -> float:
    """Write the checkpoint: the error of its logits, of tokens' embeddings or of scores, whatever the model gives."""
    from references.defined_models import DEFINED
    from references.embedder_oracle import embedding_error, scoring_error
    from references.family_oracle import as_ggml_computes, error_of, exported, llama_logits, token_ids, torch_logits
    from references.tiny_checkpoints import random_model, write_checkpoint
    from references.tiny_encoders import EMBEDDERS, RANKERS

    tokenizer = ROOT / "tests/data/books-llama-6m"
    if tiny in DEFINED:
        expected = tiny.write(folder, tokenizer)
        return float(tiny.error(exported(folder, out), expected))
    model, ids = random_model(tiny), token_ids()
    path = exported(write_checkpoint(model, folder, tokenizer, fused_experts=tiny.fused_experts), out)
    if tiny in EMBEDDERS:
        return embedding_error(model, path)
    if tiny in RANKERS:
        return scoring_error(tiny, model, path)
    return error_of(llama_logits(path, ids), torch_logits(as_ggml_computes(model) if tiny.as_ggml else model, ids))


def main() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs="?", const="", metavar="NAME", help="measure models called so")
    parser.add_argument("--missing", action="store_true", help="measure what the table does not have")
    asked = parser.parse_args()
    pattern, figures = "" if asked.missing and asked.measure is None else asked.measure, read_figures()
    if pattern is not None:
        measure(pattern, figures, missing=asked.missing)
        FOUND.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    print(table(figures))


if __name__ == "__main__":
    run_with_figure(main)
