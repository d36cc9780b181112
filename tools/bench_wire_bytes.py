"""Divergence against shipped bytes: llama.cpp's quantisers with an importance matrix, and the wire at the same bytes.

    python tools/bench_wire_bytes.py MODEL --calibration TEXT --text TEXT [--text OTHER] [--types Q5_K_M,Q4_K_M]

Peers are quantised by ggml itself (edgepack's export is byte for byte llama-quantize's), packed by our archive with
both of its coders, the smaller one counted. Every file is run by llama.cpp as a device runs it: activations are
rounded too, which the last column but one leaves out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.export.wire.origins import Origins
from edgepack.export.wire.plan import WireSettings
from edgepack.packaging.pack import pack_archive
from edgepack.pipeline.fidelity import run_validation
from edgepack.pipeline.goals.scalar import scale_to_size
from edgepack.pipeline.makers.wire_run import SEQUENCES, WireRun, read_calibration
from edgepack.quant.calibration.collect import collect
from edgepack.quant.codecs.ggml.host_grids import find_host
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,IQ4_XS,Q3_K_M,IQ3_S,Q2_K"
ABLATIONS = {
    "nearest": {"feedback": False, "column_steps": False, "row_steps": False},
    "feedback": {"column_steps": False, "row_steps": False},
    "feedback, columns": {"row_steps": False},
    "feedback, rows": {"column_steps": False},
    "all but allocation": {"allocation": False},
    "all but trellis": {"trellis": 0},
    "64 states": {"trellis": 64},
    "drift": {"drift": True},
}
PLAIN = ("nearest", "feedback", "feedback, columns", "feedback, rows")  # ablations without a trellis


@dataclass
class Point:
    """One file on the curve: bytes of the GGUF and of its archive, and what scoring gave."""

    name: str
    file_bytes: int
    shipped_bytes: int
    predicted_kl: float | None = None
    mean_kl: float = 0.0
    top1: float = 0.0
    ratio: float | None = None


def importance(model: Path, tokens: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """GGUF name → E[x²], what llama.cpp's importance matrix holds."""
    checkpoint = open_checkpoint(model)
    found, origins = collect(checkpoint, tokens).importance(), Origins(checkpoint)
    names = [name for name, rows in map_checkpoint(checkpoint).tensors.items() if len(rows.shape) == 2]
    return {name: found[origins.of(name).names[0]] for name in names if origins.of(name).names[0] in found}


def make_peers(model: Path, types: list[str], tokens: NDArray[np.int64], folder: Path) -> list[tuple[Point, Path]]:
    """Every type of llama.cpp's, quantised and packed."""
    mapped, weights = map_checkpoint(open_checkpoint(model)), importance(model, tokens)
    peers = []
    for name in types:
        path = folder / f"{name}.gguf"
        size = write_gguf(plan_export(mapped, find_target(name), PlanOptions(importance=weights)), path)
        packed = [pack_archive(path, folder / "packed.edgepack", grids=grids).bytes for grids in (False, True)]
        peers.append((Point(name, size, min(packed)), path))
    return peers


def make_ours(run: WireRun, sizes: dict[str, int], folder: Path) -> list[tuple[Point, Path]]:
    """The wire at each of the sizes."""
    points = []
    for name, size in sizes.items():
        trial = scale_to_size(run, size)
        print(f"{name}: {trial.archive_bytes} bytes after {len(run.trials)} tries", file=sys.stderr, flush=True)
        path = folder / f"{name}.gguf"
        run.gguf.rename(path)
        points.append((Point(name, trial.gguf_bytes, trial.archive_bytes, trial.result.loss), path))
    return points


def score(points: list[tuple[Point, Path]], model: Path, text: Path, options: ScoringOptions) -> None:
    """Run every file once over the text; fills in the points."""
    for start in range(0, len(points), 6):
        part = points[start : start + 6]
        found = run_validation(model, [path for _, path in part], text, options)
        for (point, _), candidate in zip(part, found.candidates, strict=True):
            statistics = candidate.validation.statistics
            point.mean_kl, point.top1 = statistics.divergence.mean, statistics.agreement.mean


def compare(peers: list[Point], ours: list[Point]) -> None:
    """Our divergence over the best of the peers' that ships in at most as many bytes."""
    for point in ours:
        within = [peer.mean_kl for peer in peers if peer.shipped_bytes <= point.shipped_bytes * 1.006]
        point.ratio = point.mean_kl / min(within) if within else None


def plot(peers: list[Point], ours: list[Point], path: Path) -> None:
    """Both curves as an SVG, logarithmic in the divergence."""
    import math

    everything = [*peers, *ours]
    most = max(p.shipped_bytes for p in everything) * 1.05
    low, high = (math.log10(f(max(p.mean_kl, 1e-6) for p in everything)) for f in (min, max))
    span = max(high - low, 0.1)
    font = 'font-family="sans-serif" font-size="11"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="420" {font}>',
        '<text x="340" y="415" text-anchor="middle">shipped MB</text><text x="5" y="12">mean KL</text>',
    ]
    for points, colour in ((peers, "#888"), (ours, "#06c")):
        for p in points:
            x, y = 40 + 600 * p.shipped_bytes / most, 20 + 360 * (high - math.log10(max(p.mean_kl, 1e-6))) / span
            label = f"{p.name} {p.shipped_bytes / 1e6:.2f} MB {p.mean_kl:.4f}"
            lines.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{colour}"/>')
            lines.append(f'<text x="{x + 6:.0f}" y="{y + 3:.0f}" fill="{colour}">{label}</text>')
    path.write_text("\n".join([*lines, "</svg>"]))


def show(title: str, points: list[Point]) -> None:
    """Print a table of points."""
    columns = ("file", "runs in", "ships in", "mean KL", "top-1", "predicted", "ratio")
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for p in points:
        predicted = "" if p.predicted_kl is None else f"{p.predicted_kl:.5f}"
        ratio = "" if p.ratio is None else f"{p.ratio:.2f}"
        sizes = f"{p.file_bytes / 1e6:.3f} MB | {p.shipped_bytes / 1e6:.3f} MB"
        print(f"| {p.name} | {sizes} | {p.mean_kl:.5f} | {p.top1:.4f} | {predicted} | {ratio} |")


def report(text: Path, host: str, peers: list[Point], ours: list[Point]) -> None:
    """The table of one text."""
    told = "ratio: KL over that of llama.cpp's best, with an importance matrix, of at most these bytes"
    show(f"{text.name}: llama.cpp's types and the wire on host {host}; {told}", [*peers, *ours])


def report_texts(found: list[tuple[str, list[Point]]]) -> None:
    """Several texts side by side: llama.cpp's best at the bytes, the wire, and their ratio."""
    columns = [f"at {point.shipped_bytes / 1e6:.2f} MB" for point in found[0][1]]
    print(f"\n| text | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for text, points in found:
        print(f"| {text} | {' | '.join(map(_beside_best, points))} |")


def _beside_best(point: Point) -> str:
    if not point.ratio:
        return f"{point.mean_kl:.4f}"
    return f"{point.mean_kl / point.ratio:.4f}, {point.mean_kl:.4f}, {point.ratio:.2f}"


def main() -> None:
    """Make, pack and score every file; print, save and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, action="append", help="several give a table each")
    parser.add_argument("--host", default="q8")
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--at", default="Q5_K_M,Q4_K_M,Q3_K_M,Q2_K", help="peers whose bytes the wire gets")
    parser.add_argument("--sizes", default="", help="further sizes in bytes")
    parser.add_argument("--ablations-at", type=int, default=0, metavar="BYTES")
    parser.add_argument("--ablations", default="", metavar="REGEX", help="only these")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="to calibrate on")
    parser.add_argument("--length", type=int, help="of these, in tokens; default 512")
    parser.add_argument("--ctx", type=int, help="of scored chunks; default by what the model makes use of")
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    started = time.monotonic()
    calibration = read_calibration(
        open_checkpoint(arguments.model), arguments.calibration, "cpu", arguments.sequences, arguments.length
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peers = make_peers(arguments.model, arguments.types.split(","), calibration.tokens, folder)
        shipped = {point.name: point.shipped_bytes for point, _ in peers}
        sizes = {f"wire at {key}": shipped[key] for key in arguments.at.split(",") if key in shipped}
        sizes |= {f"wire at {size}": int(size) for size in arguments.sizes.split(",") if size}
        settings = WireSettings(find_host(arguments.host))
        with WireRun(open_checkpoint(arguments.model), folder / "wire.gguf", settings, calibration) as run:
            ours = make_ours(run, sizes, folder)
            chosen = {label: changes for label, changes in ABLATIONS.items() if re.search(arguments.ablations, label)}
            for label, changes in chosen.items() if arguments.ablations_at else ():
                run.use(replace(settings, **({"trellis": 0} if label in PLAIN else {}), **changes))
                ours += make_ours(run, {label: arguments.ablations_at}, folder)
        found, texts = [], []
        for text in arguments.text:
            score([*peers, *ours], arguments.model, text, ScoringOptions(arguments.ctx, max_chunks=arguments.chunks))
            compare([p for p, _ in peers], [p for p, _ in ours])
            report(text, arguments.host, [p for p, _ in peers], [p for p, _ in ours])
            texts.append((text.name, [replace(p) for p, _ in ours]))
            found.append(
                {"text": text.name, "peers": [asdict(p) for p, _ in peers], "wire": [asdict(p) for p, _ in ours]}
            )
        if len(found) > 1:
            report_texts(texts)
    print(f"\n{arguments.chunks} chunks of each text; {time.monotonic() - started:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(found))
    if arguments.plot:
        plot([p for p, _ in peers], [p for p, _ in ours], arguments.plot)


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
