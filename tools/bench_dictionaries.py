"""Where a trained zstd dictionary pays: archives of one kind of member each, with and without.

    python tools/bench_dictionaries.py [--figure dictionaries]

Models: the bundled one in two types. Adapters: twelve LoRAs of it with random factors. Templates: variants of one chat
template, as a family's models bring. Dictionaries are trained by the packer's own rule: kept only where they save more
than they cost (`packaging/coding/dictionaries.py`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from figure_file import run_with_figure

from edgepack.cli import execute
from edgepack.export.lora.low_rank import adapter_metadata, write_low_rank
from edgepack.gguf.types import string
from edgepack.packaging.archive import open_archive
from edgepack.packaging.inspection import inspect_archive
from edgepack.packaging.pack import pack_archive

if TYPE_CHECKING:
    from collections.abc import Sequence

BOOKS = Path(__file__).resolve().parent.parent / "tests" / "data" / "books-llama-6m"
_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="edgepack-dictionaries-") as name:
        folder = Path(name)
        model = folder / "model.gguf"
        execute(["export", str(BOOKS), "--target", "gguf-q4km", "-o", str(model)])
        wide = folder / "wide.gguf"
        execute(["export", str(BOOKS), "--target", "gguf-q8", "-o", str(wide)])
        print("| members beside the model | without | with | saved | dictionaries |\n|---|---:|---:|---:|---|")
        print(_row("none, Q4_K_M", model, []))
        print(_row("none, Q8_0", wide, []))
        print(_row("12 LoRA adapters", model, _adapters(folder)))
        print(_row("200 chat templates", model, _templates(folder)))


def _adapters(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(12):
        factors = {
            f"blk.{block}.attn_{part}.weight": (
                rng.standard_normal((256 if part == "q" else 128, 8)).astype(np.float32),
                rng.standard_normal((8, 256)).astype(np.float32),
            )
            for block in range(6)
            for part in ("q", "v")
        }
        paths.append(folder / f"adapter-{number}.gguf")
        write_low_rank(factors, adapter_metadata(string("llama"), f"adapter {number}", {}), paths[-1])
    return paths


def _templates(folder: Path) -> list[Path]:
    paths = []
    for number in range(200):
        paths.append(folder / f"chat_template.{number}.jinja")
        system = f"{{%- set persona = 'assistant number {number}, made for task {number * 7919 % 1000}' %}}\n"
        paths[-1].write_text(system + _TEMPLATE * (1 + number % 3), encoding="utf-8")
    return paths


def _row(name: str, model: Path, include: Sequence[Path]) -> str:
    sizes, kinds = [], "none pays"
    for dictionary in (False, True):
        out = model.with_name("a.edgepack")
        sizes.append(pack_archive(model, out, dictionary=dictionary, include=include).bytes)
        with open_archive(out) as archive:
            found = inspect_archive(archive).streams
        if dictionary:
            gains = [f"{each.kind} ({each.dictionary_gain:,} B)" for each in found if each.dictionary]
            kinds = ", ".join(gains) or kinds
    without, together = sizes
    return f"| {name} | {without:,} | {together:,} | {100 * (1 - together / without):.2f} % | {kinds} |"


if __name__ == "__main__":
    sys.exit(run_with_figure(main))
