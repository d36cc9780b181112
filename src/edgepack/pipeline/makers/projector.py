"""What sees, in a file of its own beside the model's: what `--mmproj` puts around any maker, or writes alone.

Which tensors it has and as which types is `export.projector`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from edgepack.errors import UsageError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.gguf_file import write_gguf
from edgepack.export.naming import projector_name
from edgepack.export.notes import SEES_HINT
from edgepack.export.projector import PROJECTOR_TYPES, map_projector, plan_projector, projector_type
from edgepack.pipeline.outline import Made, Outline, rows_of

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.pipeline.goals.ladder import Maker
    from edgepack.pipeline.request import ExportRequest

Step_contra = TypeVar("Step_contra", contravariant=True)


class ProjectorFile:
    """The projector of a request's model, planned.

    Args:
        request: names the model and the projector's type.

    Raises:
        UsageError: no type of a projector, or a GGUF as the model.
        UnsupportedModelError: the model does not see, or llama.cpp has no such projector.
        EdgepackError: whatever the source finds wrong.
    """

    def __init__(self, request: ExportRequest) -> None:
        if request.source.is_file():
            raise UsageError(f"--mmproj: expected a Hugging Face folder, got the file '{request.model}'")
        self._kind = projector_type(request.mmproj_type or PROJECTOR_TYPES[0])
        mapped = map_projector(open_checkpoint(request.source))
        self._request, self.plan = request, plan_projector(mapped, self._kind)
        self.notes = mapped.model.notes
        self._written: set[Path] = set()
        self.name = projector_name(self.plan.metadata, self.plan.target.label)

    @property
    def bytes(self) -> int:
        """Of its file, exact."""
        return self.plan.total_bytes

    @property
    def outline(self) -> Outline:
        """Its file, where it is made alone."""
        plan = self.plan
        return Outline(
            f"mmproj-{self._kind}", plan.target.label, plan.total_bytes, plan.total_bytes, plan.source_bytes,
            rows_of(plan), plan.metadata, limits=self.notes,
        )  # fmt: skip

    def write(self, path: Path) -> Path:
        """Write it to `path`, which appears only when it is whole; once, however many tries want it there.

        Raises as `write_gguf`.
        """
        if path not in self._written:
            write_gguf(self.plan, path, threads=self._request.threads, progress=self._request.progress)
            self._written.add(path)
        return path


class WithProjector(Generic[Step_contra]):
    """Makes what another maker makes, and the projector beside it.

    Args:
        maker: of the files.
        projector: what lies beside each.
    """

    def __init__(self, maker: Maker[Step_contra], projector: ProjectorFile) -> None:
        self._maker, self._projector, self.advice = maker, projector, maker.advice

    def outline(self, setting: Step_contra) -> Outline:
        """As `goals.Maker.outline`."""
        outline = self._maker.outline(setting)
        return seeing(replace(outline, shipped_bytes=outline.shipped_bytes + self._projector.bytes), self._projector)

    def make(self, setting: Step_contra, path: Path) -> Made:
        """As `goals.Maker.make`."""
        made = self._maker.make(setting, path)
        beside = made.gguf.with_name(self._projector.name)
        self._projector.write(beside)
        return replace(made, outline=seeing(made.outline, self._projector), projector=beside)

    def forget(self, setting: Step_contra) -> None:
        """As `goals.Maker.forget`."""
        self._maker.forget(setting)


def seeing(outline: Outline, projector: ProjectorFile) -> Outline:
    """The outline of a model's file with a projector beside it, which nothing more need be said of."""
    limits = (*(line.removesuffix(SEES_HINT) for line in outline.limits), *projector.notes)
    return replace(outline, projector=projector.name, limits=limits)
