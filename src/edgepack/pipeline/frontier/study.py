"""Runs a study: every point made, packed, scored and kept, one after the other; gone on with from any moment.

Which points there are is `catalogue`'s, how one is made `making`'s, how it is scored `scoring`'s, what becomes of one
`point_by_point`'s; what was found is `found`'s, the report `report`'s.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.scoring import text_to_score
from edgepack.errors import CheckFailedError, EdgepackError, IntegrityError, UsageError
from edgepack.export.mapped_model import map_checkpoint, open_model
from edgepack.export.plan import plan_export
from edgepack.files.claim import claimed_output
from edgepack.files.folders import folder_output
from edgepack.files.source import parse_json, read_small
from edgepack.pipeline.frontier.forecast import Forecast, forecast
from edgepack.pipeline.frontier.found import RESULT, Frontier
from edgepack.pipeline.frontier.ledger import Ledger, model_digest, write_json
from edgepack.pipeline.frontier.making import FileMaker
from edgepack.pipeline.frontier.point_by_point import PointByPoint
from edgepack.pipeline.frontier.points import Point, point_from_json
from edgepack.pipeline.frontier.scoring import KeptOriginal
from edgepack.pipeline.frontier.telling import StudyClock
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgepack.pipeline.frontier.points import Spec
    from edgepack.pipeline.frontier.request import StudyRequest

_MOST_RESULT = 64 << 20


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
        work = PointByPoint(self.request, ledger, original, self._maker(self.request, ledger.place("files")), folder)
        left = [spec for spec in self.specs if not work.is_done(spec, seeds)]
        clock = StudyClock(self.request, self.specs, [spec.id for spec in self.specs if spec not in left])
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
