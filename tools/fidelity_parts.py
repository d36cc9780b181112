"""The parts of `bench_fidelity`: which points each needs, and the table that it prints of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from fidelity_study import ABLATIONS, REFINED_ABLATIONS, REFINEMENT, SETTINGS
from fidelity_text import CALIBRATION, TESTS

from edgepack.pipeline.frontier.catalogue import (
    LLAMA_CPP,
    REFINED,
    TYPES,
    is_known,
    plain,
    refined,
    stock,
    stock_types,
    wire,
    with_importance,
)
from edgepack.pipeline.frontier.points import Point, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from edgepack.pipeline.frontier.found import Frontier

# Bars: our mean KL over that of llama.cpp's best.
SAME_MEMORY = {"Q5_K_M": 0.60, "Q4_K_M": 0.55, "Q3_K_M": 0.45, "Q2_K": 0.35}
SAME_DOWNLOAD = {"Q5_K_M": 0.30, "Q4_K_M": 0.20, "Q3_K_M": 0.15, "Q2_K": 0.12}
SAME_BOTH = {"Q5_K_M": ("q5k", 0.5), "Q4_K_M": ("q4k", 0.5)}
FLOOR_BAR, FLOOR_TOP1 = 0.5, 0.965
BUDGETS = {"file_bytes": 0.002, "shipped_bytes": 0.005}  # how far below what was asked for
INGREDIENTS_AT = "Q4_K_M"
SEQUENCES = (16, 256)  # beside the default, which every other part has
_SMALLER = ("Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_S", "Q2_K")  # what fits into a Q5_K_M's bytes
_OURS = (REFINED, "wire-q8", "wire-q6k", "wire-q5k", "wire-q4k")  # without one of their ingredients they are not ours


@dataclass(frozen=True)
class Texts:
    """What `fidelity_text` wrote.

    Attributes:
        folder: where.
    """

    folder: Path

    @property
    def calibration(self) -> Path:
        """The mixture."""
        return self.folder / CALIBRATION[0]

    @property
    def tests(self) -> tuple[Path, ...]:
        """Unseen texts."""
        return tuple(self.folder / name for name in TESTS)

    @property
    def others(self) -> dict[str, Path]:
        """Calibration texts of one kind."""
        return {"books": self.folder / CALIBRATION[1], "code": self.folder / CALIBRATION[2]}


@dataclass(frozen=True)
class Part:
    """One part of the bench.

    Attributes:
        wanted: its points, those that others stand on before them.
        table: Markdown of what was found.
        further: points that it asks for once it has seen the first ones; how many times at most.
    """

    wanted: Callable[[], Iterable[Spec]]
    table: Callable[[Frontier], str]
    further: Callable[[Frontier, int], list[Spec]] = lambda _found, _rounds: []

    def specs(self) -> list[Spec]:
        """The points that this edgepack can make."""
        return [spec for spec in self.wanted() if is_known(replace(spec, options=_plain_options(spec)))]


def _plain_options(spec: Spec) -> dict[str, object]:
    """What is an option of export."""
    return {name: value for name, value in spec.options.items() if name not in (SETTINGS, REFINEMENT)}


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def best(found: Frontier, text: str, theirs: bool, **limits: int) -> Point | None:
    """The most faithful point on a text, of llama.cpp's or of ours, within limits on its sizes."""
    families = LLAMA_CPP if theirs else _OURS
    within = [
        point
        for point in found.measured
        if point.family in families and all(getattr(point, name) <= most for name, most in limits.items())
    ]
    return min(within, key=lambda point: point.texts[text].mean_kl, default=None)


def by_id(found: Frontier, name: str) -> Point | None:
    """A point that was made, or None."""
    return next((point for point in found.measured if point.id == name), None)


_BESIDE = ("at", "text", "llama.cpp's best", "its KL", "top-1", "edgepack", "its KL", "top-1", "ratio", "bar", "")


def beside(at: str, text: str, theirs: Point | None, ours: Point | None, bar: float | None) -> list[str]:
    """A row: llama.cpp's best, ours, and the ratio against its bar."""
    if theirs is None:
        return [at, text, *[""] * 9]
    peer = theirs.texts[text]
    row = [at, text, theirs.id, f"{peer.mean_kl:.5f}", f"{peer.top1:.4f}"]
    if ours is None:
        return [*row, "not made", *[""] * 5]
    own = ours.texts[text]
    ratio = own.mean_kl / peer.mean_kl
    verdict = ["", ""] if bar is None else [f"{bar:.2f}", "met" if ratio <= bar else "missed"]
    return [*row, ours.id, f"{own.mean_kl:.5f}", f"{own.top1:.4f}", f"{ratio:.3f}", *verdict]


def _equal(bars: dict[str, float], measures: Sequence[str]) -> Callable[[Frontier], str]:
    """The table at the bytes of each type: what has at most its `measures`."""

    def table(found: Frontier) -> str:
        rows = []
        for label, bar in bars.items():
            at = by_id(found, stock(label).id)
            for text in found.texts if at is not None else ():
                limits = {name: getattr(at, name) for name in measures}
                sizes = ", ".join(f"{limits[name]:,} B" for name in measures)
                pair = (best(found, text, theirs, **limits) for theirs in (True, False))
                rows.append(beside(f"{label}: {sizes}", text, *pair, bar))
        return markdown(_BESIDE, rows)

    return table


def smooth() -> Spec:
    """Q8_0 of weights whose scales were moved for the activations' rounding, and nothing else."""
    options = {"target": TYPES["Q8_0"], "passes": ("smooth",), "refine": False}
    return Spec("smooth/Q8_0", "smooth", options, "calibration")


def _floor_table(found: Frontier) -> str:
    rows = []
    for text in found.texts:
        theirs = by_id(found, plain("Q8_0").id)
        limit = 0 if theirs is None else theirs.file_bytes * 1.001  # metadata say how it was made
        for name in ("smooth/Q8_0", refined("Q8_0").id):
            ours = by_id(found, name)
            row = beside("Q8_0", text, theirs, ours, FLOOR_BAR)
            told = "" if ours is None else "met" if ours.texts[text].top1 >= FLOOR_TOP1 else "missed"
            rows.append([*row, told if ours is None or ours.file_bytes <= limit else f"{told}, more bytes"])
    return markdown((*_BESIDE, f"top-1 ≥ {FLOOR_TOP1}"), rows)


def _top95_table(found: Frontier) -> str:
    theirs = [point for point in found.measured if point.family in LLAMA_CPP]
    ours = [point for point in found.measured if point.family in _OURS]
    rows = []
    for measure, told in (("shipped_bytes", "shipped"), ("file_bytes", "memory")):
        pair = [found.smallest(measure, points) for points in (theirs, ours)]
        cells = [part for point in pair for part in _least(found, point, measure)]
        sizes = [getattr(point, measure) if point else 0 for point in pair]
        rows.append([told, *cells, f"{sizes[1] / sizes[0]:.3f}" if all(sizes) else ""])
    columns = ("least", "llama.cpp's", "bytes", "top-1", "edgepack", "bytes", "top-1", "ratio")
    return markdown(columns, rows)


def _least(found: Frontier, point: Point | None, measure: str) -> list[str]:
    if point is None:
        return ["none", "", ""]
    shares = ", ".join(f"{point.texts[text].top1:.4f}" for text in found.texts)
    return [point.id, f"{getattr(point, measure):,}", shares]


def _bisected(found: Frontier, _rounds: int) -> list[Spec]:
    """A point between the smallest that keeps the goal and the largest below it that does not, of each family."""
    made = [(_FAMILIES[family], [p for p in found.measured if p.family == family]) for family in _FAMILIES]
    return [spec for (measure, options), points in made if (spec := _between(found, points, measure, options))]


# Families that can be made at any size → what is bisected, and their options.
_FAMILIES = {
    "wire-q8": ("shipped_bytes", {"target": "wire", "host_type": "q8"}),
    REFINED: ("file_bytes", {"refine": True}),
}


def _between(found: Frontier, points: Sequence[Point], measure: str, options: dict[str, object]) -> Spec | None:
    sizes = {getattr(point, measure): found.keeps(point) for point in points}
    keeping = min((size for size, kept in sizes.items() if kept), default=None)
    failing = max((size for size, kept in sizes.items() if not kept and size < (keeping or 0)), default=None)
    if keeping is None or failing is None or keeping - failing < 0.005 * keeping:
        return None
    middle = round((keeping * failing) ** 0.5)
    family = points[0].family
    return Spec(f"{family}/{middle:,} B", family, options, "calibration", max_bytes=middle)


def _ingredient(name: str, changes: dict[str, object]) -> Spec:
    size = ("shipped_bytes", stock(INGREDIENTS_AT).id)
    return Spec(f"ingredients/{name}", "ingredients", {SETTINGS: {"host": "q8", **changes}}, "calibration", size)


def _refined_ingredient(name: str, changes: dict[str, bool]) -> Spec:
    """Within the stock file's bytes; without allocation, in the target's own types."""
    changes = dict(changes)
    own, smooth = not changes.get("allocation", True), changes.pop("smooth", True)
    target = {"target": TYPES[INGREDIENTS_AT]} if own else {}
    options = {"refine": True, "smooth": smooth, REFINEMENT: changes, **target}
    size = None if own else ("file_bytes", stock(INGREDIENTS_AT).id)
    return Spec(f"ingredients/{name}", "ingredients", options, "calibration", size)


def _ingredients_table(found: Frontier) -> str:
    at, rows = by_id(found, stock(INGREDIENTS_AT).id), []
    of = {
        "shipped_bytes": [*(f"ingredients/{name}" for name in ABLATIONS), wire("q8", INGREDIENTS_AT).id],
        "file_bytes": [*(f"ingredients/{name}" for name in REFINED_ABLATIONS), refined(INGREDIENTS_AT).id],
    }
    for measure, names in of.items():
        for text in found.texts if at is not None else ():
            theirs = best(found, text, True, **{measure: getattr(at, measure)})
            for point in filter(None, (by_id(found, name) for name in names)):
                row = beside(f"{INGREDIENTS_AT}, {measure}", text, theirs, point, None)[:9]
                rows.append([*row, f"{getattr(point, measure):,}"])
    return markdown((*_BESIDE[:9], "bytes"), rows)


def _calibrated() -> list[Spec]:
    """The same files with other calibration texts, and with more or less of it."""
    bases = [wire("q8", INGREDIENTS_AT), refined(INGREDIENTS_AT), with_importance(INGREDIENTS_AT)]
    found = list(bases)
    for base in bases:
        found += [replace(base, id=f"{base.id} on {name}", family=f"{base.family} on {name}", calibration=name)
                  for name in ("books", "code")]  # fmt: skip
        found += [replace(base, id=f"{base.id} of {count}", family=f"{base.family} of {count}", sequences=count)
                  for count in SEQUENCES]  # fmt: skip
    return found


def _calibration_table(found: Frontier) -> str:
    at = by_id(found, stock(INGREDIENTS_AT).id)
    rows = []
    for spec in (each for each in _calibrated() if by_id(found, each.id) is not None):
        for text in found.texts:
            measure = "file_bytes" if spec.family.startswith(REFINED) else "shipped_bytes"
            limit = {} if at is None else {measure: getattr(at, measure)}
            theirs = best(found, text, True, **limit)
            rows.append(beside(INGREDIENTS_AT, text, theirs, by_id(found, spec.id), None)[:9])
    return markdown(_BESIDE[:9], rows)


def _budgeted() -> list[Spec]:
    """Sizes that no type has: between two of them."""
    return [*stock_types(("Q5_K_M", "Q4_K_M")), refined("Q4_K_M"), wire("q8", "Q4_K_M"), wire("q4k", "Q4_K_M")]


def _odd_sizes(found: Frontier, _rounds: int) -> list[Spec]:
    large, small = by_id(found, stock("Q5_K_M").id), by_id(found, stock("Q4_K_M").id)
    if large is None or small is None:
        return []
    specs = []
    for family in (REFINED, "wire-q8"):
        measure, options = _FAMILIES[family]
        size = (2 * getattr(large, measure) + getattr(small, measure)) // 3
        specs.append(Spec(f"{family}/{size:,} B", family, options, "calibration", max_bytes=size))
    return [spec for spec in specs if is_known(spec) and by_id(found, spec.id) is None]


def _budgets_table(found: Frontier) -> str:
    rows = []
    full = wire("q8", "Q8_0").id  # asked for as many bytes as its host has: there is no finer grid
    for point in found.measured:
        if point.limit is None or point.id == full:
            continue
        measure = "file_bytes" if _is_refined(point) else "shipped_bytes"
        got = getattr(point, measure)
        short = 1 - got / point.limit
        verdict = "met" if 0 <= short <= BUDGETS[measure] else "missed"
        told = [
            "GGUF" if measure == "file_bytes" else "archive",
            f"{point.limit:,}",
            f"{got:,}",
            f"{100 * short:.3f} %",
        ]
        rows.append([point.id, *told, f"{100 * BUDGETS[measure]:.1f} %", verdict, f"{point.make_seconds:,.0f}"])
    return markdown(("file", "of", "asked for, B", "got, B", "below by", "bar", "", "made in, s"), rows)


def _is_refined(point: Point) -> bool:
    """Whether the bytes that were asked for are the GGUF's."""
    family, _, name = point.id.partition("/")
    return family.startswith(REFINED) or name in REFINED_ABLATIONS


def _times_table(found: Frontier) -> str:
    rows = [[point.id, f"{point.make_seconds:,.1f}", f"{point.pack_seconds:,.1f}",
             f"{sum(each.seconds for each in point.texts.values()):,.1f}"] for point in found.measured]  # fmt: skip
    return markdown(("file", "made in, s", "packed in, s", "scored in, s"), rows)


def _memory() -> list[Spec]:
    return [*stock_types(_SMALLER), *(refined(label) for label in SAME_MEMORY)]


def _download() -> list[Spec]:
    ours = [make(label) for label in SAME_DOWNLOAD for make in (partial(wire, "q8"), refined)]
    return [*stock_types(_SMALLER), *ours]


def _both() -> list[Spec]:
    return [*stock_types(_SMALLER), *(wire(host, label) for label, (host, _bar) in SAME_BOTH.items())]


def _top95() -> list[Spec]:
    wires = [wire("q8", label) for label in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")]
    return [*stock_types(), *wires, *(refined(label) for label in ("Q8_0", "Q6_K", "Q5_K_M"))]


def _ingredients() -> list[Spec]:
    without = [_ingredient(name, changes) for name, changes in ABLATIONS.items()]
    without += [_refined_ingredient(name, changes) for name, changes in REFINED_ABLATIONS.items()]
    return [*stock_types(_SMALLER[1:3]), wire("q8", INGREDIENTS_AT), refined(INGREDIENTS_AT), *without]


PARTS: dict[str, Part] = {
    "floor": Part(lambda: [plain("Q8_0"), smooth(), refined("Q8_0")], _floor_table),
    "equal-memory": Part(_memory, _equal(SAME_MEMORY, ("file_bytes",))),
    "equal-shipped": Part(_download, _equal(SAME_DOWNLOAD, ("shipped_bytes",))),
    "equal-both": Part(_both, _equal({at: bar for at, (_host, bar) in SAME_BOTH.items()}, tuple(BUDGETS))),
    "top95": Part(_top95, _top95_table, _bisected),
    "ingredients": Part(_ingredients, _ingredients_table),
    "calibration": Part(lambda: [*stock_types(_SMALLER[1:3]), *_calibrated()], _calibration_table),
    "budgets": Part(_budgeted, _budgets_table, _odd_sizes),
    "times": Part(list, _times_table),
}
