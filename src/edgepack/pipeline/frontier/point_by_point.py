"""Points of a study, made, measured, noted and put away one after the other.

Which points there are and in which order is left to `study`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import CheckFailedError, DependencyError, EdgepackError, IntegrityError, ResourceError
from edgepack.files.output import move_output
from edgepack.pipeline.frontier.points import Point
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.pipeline.frontier.ledger import Ledger
    from edgepack.pipeline.frontier.making import FileMaker
    from edgepack.pipeline.frontier.points import Spec
    from edgepack.pipeline.frontier.request import StudyRequest
    from edgepack.pipeline.frontier.scoring import KeptOriginal

_FATAL = (ResourceError, DependencyError, IntegrityError)  # nothing that another point would be spared


class PointByPoint:
    """Points of a study under way.

    Args:
        request: of the study.
        ledger: where what is done is noted.
        original: what points are held against.
        maker: makes files.
        folder: the output, where files that are kept go.
    """

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
