"""What caches cost: every type of llama.cpp's, with its rotation and without, and caches of fewer dimensions.

    python tools/bench_kv.py NAME=CHECKPOINT=GGUF... --text TEXT --calibration OTHER [--ctx 512] [--chunks 4]
        [--keep FOLDER] [--types-only] [--figure caches,dimensions,claim,spectra]

Caches are measured through llama.cpp on the GGUF, against its own f16 cache. Caches of k dimensions are the
checkpoint's in float32, against its own whole cache: principal components of keys and values of the other text, all
heads of a layer side by side. Both read the same chunks of TEXT and are judged in the second half of each. Nothing is
trained. Finished parts are kept in a folder where one is named.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from figure_file import run_with_figure
from part_cost import counted

from edgepack.edge.fidelity.scorers.scorer import Chunking
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.kv.measure import Caches, KeptChunks, measure_caches
from edgepack.edge.kv.sizes import USUAL, refusal, row_bytes
from edgepack.export.checkpoint import open_checkpoint
from edgepack.gguf.reader import read_header
from edgepack.pipeline.kv.spectra import chunks_of, kept, projection_losses, take_bases, take_spectra
from edgepack.quant.calibration.attention_projection import ProjectedCache
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgepack.edge.kv.table import CacheCost
    from edgepack.model import Checkpoint
    from edgepack.quant.calibration.attention_projection import Basis, Part

_NO_ROTATION = "LLAMA_ATTN_ROT_DISABLE"  # read by llama.cpp whenever it makes a cache
_CLAIMED = 9  # dimensions that are said to hold 95 % of keys and values of 768: a cache 85 times smaller
_LEARNT = 16  # chunks of the other text that directions are taken from
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of all dimensions
_VIEWS = ("raw", "centred", "standardised", "raw_first_dropped")
_KINDS = {"q_before": "Q before rotation", "q": "Q", "k_before": "K before rotation", "k": "K", "v": "V"}


@dataclass(frozen=True)
class Subject:
    """A model: its name, checkpoint and GGUF."""

    name: str
    checkpoint: Path
    gguf: Path


def subject(text: str) -> Subject:
    """Of `NAME=CHECKPOINT=GGUF`."""
    name, checkpoint, gguf = text.split("=")
    return Subject(name, Path(checkpoint), Path(gguf))


class Kept:
    """Results of parts that are done, one JSON file each."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def known(self, name: str) -> Any:
        """What is kept under a name; None where nothing is."""
        path = None if self.folder is None else self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path is not None and path.is_file() else None

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """What is kept under a name, or what is made, with the CPU seconds and the memory (MB) that it took."""
        if (known := self.known(name)) is not None:
            return known
        path = None if self.folder is None else self.folder / f"{name}.json"
        with counted() as cost:
            made = make()
        found = {"made": made, "seconds": cost.seconds, "memory": cost.megabytes}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
        return found


def measured(one: Subject, text: str, given: argparse.Namespace, *, rotation: bool) -> list[dict[str, Any]]:
    """Costs of every cache, with llama.cpp's rotation or without."""
    os.environ.pop(_NO_ROTATION, None)
    if not rotation:
        os.environ[_NO_ROTATION] = "1"
    shape = read_shape(read_header(one.gguf))
    names = [name for name in USUAL if not refusal(shape, name)]
    with closing(Caches(one.gguf, given.ctx, threads=given.threads)) as caches:
        chunks = list(Chunking(given.ctx, max_chunks=given.chunks).chunks(caches.tokenize(text), caches.bos))
        work = None
        if given.keep is not None:
            key = {"gguf": str(one.gguf), "ctx": given.ctx, "text": str(given.text), "rotation": rotation}
            work = KeptChunks(given.keep / f"{one.name}-{rotation}.jsonl", key)
        costs: list[CacheCost] = measure_caches(caches, names, chunks, kept=work)
    os.environ.pop(_NO_ROTATION, None)
    return [{**asdict(cost), "bytes": row_bytes(shape, cost.name)} for cost in costs]


def is_turned(one: Subject) -> bool:
    """Whether llama.cpp turns any quantised cache of the model."""
    shape = read_shape(read_header(one.gguf))
    return shape.head_k % 64 == 0 or shape.head_v % 64 == 0


@dataclass(frozen=True)
class Held:
    """Which parts a cache holds in fewer dimensions, and how that is called."""

    parts: tuple[Part, ...]
    told: str
    centred: bool = True


BOTH = Held(("k_before", "v"), "K before rotation, V")
VARIANTS = (
    BOTH,
    Held(("k", "v"), "K after rotation, V"),
    Held(("k_before", "v"), "the same as the first, no mean", centred=False),
    Held(("k_before",), "K before rotation alone"),
    Held(("v",), "V alone"),
)


def projected(one: Subject, text: str, given: argparse.Namespace) -> dict[str, Any]:
    """Spectra, and caches of fewer dimensions: the claim's in every variant, others as a cache would hold them."""
    checkpoint = open_checkpoint(one.checkpoint)
    chunks = chunks_of(checkpoint, text, Chunking(given.ctx, max_chunks=given.chunks))
    learnt = chunks_of(checkpoint, read_text(given.calibration), Chunking(given.ctx, max_chunks=_LEARNT))
    spectra = take_spectra(checkpoint, chunks)
    widths = {layer.kinds["k"].width + layer.kinds["v"].width for layer in spectra.layers}
    width = spectra.layers[0].kinds["k"].width
    bases = {centred: take_bases(checkpoint, learnt, centred=centred) for centred in (True, False)}
    asked = [(held, _CLAIMED) for held in VARIANTS] + [(BOTH, round(share * width)) for share in _SHARES]
    rows = list(_losses(checkpoint, chunks, bases, asked))
    means = {
        kind: {
            view: [
                float(sum(values) / len(spectra.layers))
                for values in zip(
                    *(
                        (joint.effective_rank, *(joint.dimensions(share) for share in (0.9, 0.95, 0.99)))
                        for joint in (layer.kinds[kind].joint[view] for layer in spectra.layers)  # type: ignore[index]
                    ),
                    strict=True,
                )
            ]
            for view in _VIEWS
        }
        for kind in _KINDS
    }
    return {"rows": rows, "spectra": means, "width": width, "whole": sum(widths) * 2 * len(spectra.layers)}


def _losses(
    checkpoint: Checkpoint,
    chunks: Sequence[Any],
    bases: dict[bool, dict[int, dict[Part, Basis]]],
    asked: Sequence[tuple[Held, int]],
) -> Iterator[dict[str, Any]]:
    caches = [ProjectedCache(bases[held.centred], k, held.parts) for held, k in asked]
    losses = projection_losses(checkpoint, chunks, caches)
    for (held, k), loss in zip(asked, losses, strict=True):
        energy = {part: kept(bases[held.centred], part, k) for part in held.parts}
        yield {
            "held": held.told, "k": k, "energy": energy, "kl": loss.kl.mean, "kl_high": loss.kl.interval()[1],
            "agreement": loss.agreement.mean,
        }  # fmt: skip


def percent(share: float) -> str:
    """For a table."""
    return f"{100 * share:.1f} %"


def print_caches(found: list[tuple[Subject, dict[str, Any]]]) -> None:
    """One line a cache, with and without llama.cpp's rotation."""
    print("| model | cache (K/V) | bytes a token | KL to f16 | at most | same token | KL, not turned | CPU s | MB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for one, parts in found:
        plain = {} if parts["plain"] is None else {row["name"]: row["kl"] for row in parts["plain"]["made"]}
        seconds = parts["caches"]["seconds"] / len(parts["caches"]["made"])
        for row in parts["caches"]["made"]:
            other = f"{plain[row['name']]:.5f}" if row["name"] in plain else "–"
            print(
                f"| {one.name} | {row['name']} | {row['bytes']:,} | {row['kl']:.5f} | {row['kl_high']:.5f} | "
                f"{100 * row['agreement']:.2f} % | {other} | {seconds:.0f} | {parts['caches']['memory']} |"
            )
    print()


def print_dimensions(found: list[tuple[Subject, dict[str, Any]]]) -> None:
    """One line a number of dimensions, as a cache would hold them."""
    print(
        "| model | dimensions of K and of V | bytes a token | smaller by | of K's energy | of V's | KL | same token "
        "| CPU s | MB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for one, parts in found:
        made, seconds = parts["projected"]["made"], parts["projected"]["seconds"]
        layers = made["whole"] // (4 * made["width"])
        for row in made["rows"]:
            if row["held"] != BOTH.told:
                continue
            size = 4 * row["k"] * layers
            print(
                f"| {one.name} | {row['k']} of {made['width']} | {size:,} | {made['whole'] / size:.1f} | "
                f"{percent(row['energy']['k_before'])} | {percent(row['energy']['v'])} | {row['kl']:.4f} | "
                f"{percent(row['agreement'])} | {seconds / len(made['rows']):.0f} | {parts['projected']['memory']} |"
            )
    print()


def print_claim(found: list[tuple[Subject, dict[str, Any]]]) -> None:
    """What nine dimensions keep and lose, whichever part is held in them."""
    print("| model | held in 9 dimensions | of | of K's energy | of V's | KL | at most | same token | CPU s | MB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for one, parts in found:
        made, seconds = parts["projected"]["made"], parts["projected"]["seconds"]
        for row in made["rows"]:
            if row["k"] != _CLAIMED:
                continue
            keys = [value for part, value in row["energy"].items() if part != "v"]
            values = [value for part, value in row["energy"].items() if part == "v"]
            told = ["".join(map(percent, side)) or "–" for side in (keys, values)]
            print(
                f"| {one.name} | {row['held']} | {made['width']} | {told[0]} | {told[1]} | {row['kl']:.3f} | "
                f"{row['kl_high']:.3f} | {percent(row['agreement'])} | {seconds / len(made['rows']):.0f} "
                f"| {parts['projected']['memory']} |"
            )
    print()


def print_spectra(found: list[tuple[Subject, dict[str, Any]]]) -> None:
    """Means over layers of every kind and view."""
    print("| model | of | view | effective rank | 90 % | 95 % | 99 % | in all |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for one, parts in found:
        made = parts["projected"]["made"]
        for kind, views in made["spectra"].items():
            for view, (rank, *dims) in views.items():
                told = " | ".join(f"{value:.1f}" for value in (rank, *dims))
                print(f"| {one.name} | {_KINDS[kind]} | {view.replace('_', ' ')} | {told} | {made['width']} |")
    print()


def parts_of(one: Subject, text: str, given: argparse.Namespace, results: Kept) -> dict[str, Any]:
    """All that is measured of one model."""
    plain = None
    if is_turned(one):
        plain = results.get(f"{one.name}-plain", lambda: measured(one, text, given, rotation=False))
    caches = results.get(f"{one.name}-caches", lambda: measured(one, text, given, rotation=True))
    name = f"{one.name}-projected"
    fewer = None if given.types_only else results.get(name, lambda: projected(one, text, given))
    return {"caches": caches, "plain": plain, "projected": fewer}


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", type=subject, metavar="NAME=CHECKPOINT=GGUF")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="directions are taken from this text")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--types-only", action="store_true", help="nothing of fewer dimensions")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep results there, and take those that are")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    kept_results, text = Kept(given.keep), read_text(given.text)
    found = [(one, parts_of(one, text, given, kept_results)) for one in given.models]
    print_caches(found)
    if not given.types_only:
        print_dimensions(found)
        print_claim(found)
        print_spectra(found)


if __name__ == "__main__":
    run_with_figure(main)
