"""Runs a study: every point made, packed, scored and kept, one after the other; gone on with from any moment.

Which points there are is `catalogue`'s, how one is made `making`'s, how it is scored `scoring`'s; the report is
`report`'s.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.outcome import finite
from edgepack.edge.fidelity.run import pareto_front
from edgepack.edge.fidelity.scoring import text_to_score
from edgepack.errors import CheckFailedError, DependencyError, EdgepackError, IntegrityError, ResourceError, UsageError
from edgepack.export.mapped_model import map_checkpoint, open_model
from edgepack.export.plan import plan_export
from edgepack.files.claim import claimed_output
from edgepack.files.folders import folder_output
from edgepack.files.output import move_output
from edgepack.files.source import parse_json, read_small
from edgepack.pipeline.frontier.forecast import Forecast, forecast
from edgepack.pipeline.frontier.ledger import Ledger, model_digest, write_json
from edgepack.pipeline.frontier.making import FileMaker
from edgepack.pipeline.frontier.points import Point, point_from_json
from edgepack.pipeline.frontier.scoring import KeptOriginal
from edgepack.quant.types.targets import find_target
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgepack.pipeline.frontier.points import Spec
    from edgepack.pipeline.frontier.request import StudyRequest

RESULT = "frontier.json"
_MOST_RESULT = 64 << 20
_FATAL = (ResourceError, DependencyError, IntegrityError)  # nothing that another point would be spared


@dataclass(frozen=True)
class Frontier:
    """What a study found.

    Attributes:
        model: the original's label.
        about: what the figures depend on.
        texts: name → (SHA-256, tokens scored, chunk length).
        points: in the order of the catalogue; failed ones too.
        goal: the share of equal first choices that a file should keep.
        seconds: of this run.
    """

    model: str
    about: Mapping[str, str]
    texts: Mapping[str, tuple[str, int, int]]
    points: tuple[Point, ...]
    goal: float
    seconds: float

    @property
    def measured(self) -> tuple[Point, ...]:
        """Points that exist."""
        return tuple(point for point in self.points if not point.failed)

    def mean_kl(self, point: Point) -> float:
        """Over the texts, each as much as any other."""
        return sum(each.mean_kl for each in point.texts.values()) / len(point.texts)

    def keeps(self, point: Point, *, surely: bool = False) -> bool:
        """Whether a file keeps the goal on every text; `surely`: by the lower ends of the intervals."""
        shares = (each.top1_interval[0] if surely else each.top1 for each in point.texts.values())
        return min(shares) >= self.goal

    def smallest(self, measure: str, points: Sequence[Point] | None = None) -> Point | None:
        """The file of least `shipped_bytes` or `file_bytes` that keeps the goal; None where none does."""
        kept = [point for point in (self.measured if points is None else points) if self.keeps(point)]
        return min(kept, key=lambda point: (getattr(point, measure), self.mean_kl(point)), default=None)

    def front(self, measure: str) -> frozenset[str]:
        """Ids of the points that no other one beats."""
        points = self.measured
        marks = pareto_front([getattr(p, measure) for p in points], [self.mean_kl(p) for p in points])
        return frozenset(point.id for point, marked in zip(points, marks, strict=True) if marked)

    def best_on(self, device: str) -> Point | None:
        """The most faithful file that lies wholly on a device; None where none does."""
        there = [point for point in self.measured if device in point.devices and point.devices[device].fits]
        return min(there, key=self.mean_kl, default=None)

    def as_json(self) -> dict[str, Any]:
        """What `frontier.json` holds."""
        shipped, memory = self.front("shipped_bytes"), self.front("file_bytes")
        found = {name: self.smallest(name) for name in ("shipped_bytes", "file_bytes")}
        devices = sorted({name for point in self.measured for name in point.devices})
        return finite({
            "edgepack": __version__, "model": self.model, "about": dict(self.about), "goal": self.goal,
            "texts": {name: {"sha256": sha, "tokens": tokens, "ctx": ctx}
                      for name, (sha, tokens, ctx) in self.texts.items()},
            "smallest": {name: None if point is None else point.id for name, point in found.items()},
            "devices": {name: None if (best := self.best_on(name)) is None else best.id for name in devices},
            "points": [{**point.as_json(), "on_shipped_front": point.id in shipped,
                        "on_memory_front": point.id in memory} for point in self.points],
            "seconds": round(self.seconds, 1),
        })  # fmt: skip


class Study:
    """A study under way.

    Args:
        request: what is asked for.
        specs: its points, those that others stand on before them.
        maker: makes files.
        write: writes the report into the folder.

    Raises:
        UsageError: texts of one name, or one that is not there.
    """

    def __init__(
        self,
        request: StudyRequest,
        specs: Sequence[Spec],
        maker: Callable[[StudyRequest, Path], FileMaker] = FileMaker,
        write: Callable[[Frontier, Path], object] = lambda _found, _folder: None,
    ) -> None:
        self.request, self.specs = request, tuple(specs)
        self._maker, self._write = maker, write
        names = [path.name for path in request.texts]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"texts: expected at least one, each of another name, got {', '.join(names) or 'none'}")
        if not request.model.exists():
            raise UsageError(f"model '{request.model}': no such file or folder")
        self.about = _about(request)

    def check(self) -> None:
        """Refuse a model that cannot be exported, before anything is made or run.

        Raises:
            EdgepackError: as the export's plan.
        """
        located = self.request.located
        mapped = open_model(self.request.model) if located is None else map_checkpoint(located.checkpoint)
        plan_export(mapped, find_target("gguf-q8"))

    def forecast(self) -> Forecast:
        """How long it will take; nothing is written. Raises as `forecast.forecast`."""
        self.check()
        done = self._finished() if self.request.resume else {}
        return forecast(self.request, self.specs, [name for name, point in done.items() if not point.failed])

    def run(self) -> Frontier:
        """Make and measure what is not there yet, and write the output's folder at the end.

        Raises:
            EdgepackError: what concerns the study as a whole; what concerns one point is told with it.
        """
        began = time.monotonic()
        self.check()
        with self._place() as folder:
            seeds = self._finished() if self.request.resume else {}
            ledger = Ledger(self.request.output, self.about, resume=self.request.resume)
            try:
                found = self._measured(ledger, seeds, folder)
            except EdgepackError:
                if not any(ledger.read(spec.slug) for spec in self.specs):
                    ledger.remove()
                raise
            found = replace(found, seconds=time.monotonic() - began)
            write_json(folder / RESULT, found.as_json())
            self._write(found, folder)
        if not self.request.keep_work:
            ledger.remove()
        return found

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """Where the results are written: a new folder that appears whole, or the one of a finished study."""
        output = self.request.output
        if self.request.resume and (output / RESULT).is_file():
            with claimed_output(output / RESULT, force=True):
                yield output
            return
        inputs = [self.request.model, self.request.calibration, *self.request.texts]
        with folder_output(output, inputs=inputs) as scratch:
            yield scratch

    def _finished(self) -> dict[str, Point]:
        """Points of a finished study of the same."""
        path = self.request.output / RESULT
        if not path.is_file():
            return {}
        found = parse_json(read_small(path, IntegrityError, _MOST_RESULT), path, IntegrityError)
        if not isinstance(found, dict) or found.get("about") != self.about:
            raise UsageError(f"--resume: '{path}' is of another model, text or setting: name another folder with -o")
        points = [point_from_json(each, str(path)) for each in found["points"]]
        return {point.id: point for point in points}

    def _measured(self, ledger: Ledger, seeds: Mapping[str, Point], folder: Path) -> Frontier:
        original = KeptOriginal(self.request, ledger)
        work = _Work(self.request, ledger, original, self._maker(self.request, ledger.place("files")), folder)
        left = [spec for spec in self.specs if not work.is_done(spec, seeds)]
        clock = _Clock(self.request, self.specs, [spec.id for spec in self.specs if spec not in left])
        if left:
            original.run()
        for spec in self.specs:
            if spec in left:
                point = work.point(spec)
                clock.tell(spec, point)
        points = tuple(work.done[spec.id] for spec in self.specs)
        others = tuple(point for name, point in seeds.items() if name not in work.done)
        measured = [point for point in points if not point.failed]
        if not measured:
            raise CheckFailedError(f"no point could be made: {points[0].id}: {points[0].failed}")
        scored = measured[0].texts
        texts = {name: (text.sha256, scored[name].tokens, scored[name].ctx) for name, text in original.texts.items()}
        return Frontier(
            self.request.model.resolve().name, self.about, texts, (*points, *others), self.request.goal, 0.0
        )


class _Work:
    """Points of a study, made one after the other."""

    def __init__(
        self, request: StudyRequest, ledger: Ledger, original: KeptOriginal, maker: FileMaker, folder: Path
    ) -> None:
        self._request, self._ledger, self._original, self._maker = request, ledger, original, maker
        self._folder = folder
        self.done: dict[str, Point] = {}

    def is_done(self, spec: Spec, seeds: Mapping[str, Point]) -> bool:
        """Whether a point was wholly measured before; it counts as done then."""
        point = seeds.get(spec.id) or self._ledger.read(spec.slug)
        if point is None or point.failed or point.texts.keys() != self._original.texts.keys():
            return False
        self.done[spec.id] = point
        return True

    def point(self, spec: Spec) -> Point:
        """Make and measure one point, from where an interrupted run left it."""
        try:
            point = self._made(spec)
            for name in self._original.texts:
                if name not in point.texts:
                    point = point.with_text(name, self._original.measure(self._maker.gguf_of(spec), name))
                    self._ledger.note(spec.slug, point)
        except _FATAL:
            raise
        except EdgepackError as error:
            point = Point(spec.id, spec.family, failed=str(error), version=__version__)
            self._ledger.note(spec.slug, point)
        self._put_away(spec, point)
        self.done[spec.id] = point
        return point

    def _made(self, spec: Spec) -> Point:
        known, gguf = self._ledger.read(spec.slug), self._maker.gguf_of(spec)
        if known is not None and not known.failed and gguf.is_file() and gguf.stat().st_size == known.file_bytes:
            return known
        held = {"max_memory": self._bytes_of(spec.memory_of, "file_bytes")} if spec.memory_of else {}
        point, _files = self._maker.make(replace(spec, options={**spec.options, **held}), self._limit(spec))
        self._ledger.note(spec.slug, point)
        return point

    def _limit(self, spec: Spec) -> int | None:
        if spec.size_of is None:
            return spec.max_bytes
        measure, name = spec.size_of
        return self._bytes_of(name, measure)

    def _bytes_of(self, name: str, measure: str) -> int:
        found = self.done[name]
        if found.failed:
            raise CheckFailedError(f"its size is that of {name}, which could not be made")
        return int(getattr(found, measure))

    def _put_away(self, spec: Spec, point: Point) -> None:
        """Keep a point's files in the output, or remove them."""
        gguf = self._maker.gguf_of(spec)
        if self._request.keep_files and not point.failed:
            kept = self._folder / "files"
            kept.mkdir(exist_ok=True)
            for path in (gguf, gguf.with_suffix(".edgepack")):
                if path.is_file():
                    move_output(path, kept / path.name)
        self._maker.forget(spec)


class _Clock:
    """Tells how long a study takes, before and between its points."""

    def __init__(self, request: StudyRequest, specs: Sequence[Spec], done: Sequence[str]) -> None:
        self._request, self._count, self._number = request, len(specs), len(done)
        self._expected = self._spent = 0.0
        self._left: Forecast | None = None
        if len(done) == len(specs):
            return
        try:
            self._left = forecast(request, specs, done)
        except EdgepackError as error:
            request.tell(f"how long it takes cannot be foretold: {error}")
        else:
            request.tell(f"{len(specs) - len(done)} points, about {told_time(self._left.seconds)}")
        self._last = time.monotonic()

    def tell(self, spec: Spec, point: Point) -> None:
        """A point is done."""
        now = time.monotonic()
        self._spent, self._number, self._last = self._spent + now - self._last, self._number + 1, now
        self._request.tell(f"{self._number} of {self._count}: {told_point(point)}{self._remaining(spec)}")

    def _remaining(self, spec: Spec) -> str:
        """What is left, by how the forecast did so far."""
        if self._left is None:
            return ""
        self._expected += self._left.points.pop(spec.id, 0.0) + sum(self._left.once.values())
        self._left.once = {}
        if not self._left.points or not self._expected:
            return ""
        return f"; about {told_time(self._left.seconds * self._spent / self._expected)} left"


def told_point(point: Point) -> str:
    """A point in a line."""
    if point.failed:
        return f"{point.id}: not made: {point.failed}"
    shares = ", ".join(f"{name} KL {each.mean_kl:.4f} top-1 {each.top1:.4f}" for name, each in point.texts.items())
    return f"{point.id}: {point.file_bytes / 1e6:.2f} MB, ships in {point.shipped_bytes / 1e6:.2f} MB; {shares}"


def told_time(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _about(request: StudyRequest) -> dict[str, str]:
    scoring = request.scoring
    about = {
        "model": model_digest(request.model) if request.located is None else request.located.digest(),
        "calibration": _sha256(request.calibration),
        "sequences": str(request.sequences), "length": str(request.length),
        "scoring": f"ctx {scoring.ctx}, stride {scoring.stride}, chunks {scoring.max_chunks}, cache {scoring.kv_type}",
    }  # fmt: skip
    about |= {f"text {path.name}": _sha256(path) for path in request.texts}
    return about | {f"calibration {name}": _sha256(path) for name, path in request.calibrations.items()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(text_to_score(path).text.encode()).hexdigest()
