"""Exports with passes from request to files: the target given, the largest that fits, or the smallest that passes.

The same goals without passes are `pipeline.export`'s and `pipeline.gated`'s. Passes are `pipeline.passes`', adapters
beside a file `pipeline.corrections`'. It prints nothing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.atomic_file import check_output
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.gguf_file import write_gguf
from edgepack.export.naming import file_name
from edgepack.packaging.pack import pack_archive
from edgepack.pipeline.corrections import correction_bytes, write_adapters
from edgepack.pipeline.export import (
    LADDER,
    archive_too_large,
    nothing_fits,
    refuse_no_goal,
    target_too_large,
    worth_trying,
)
from edgepack.pipeline.gated import refuse_size_with_gates
from edgepack.pipeline.ladder import climb
from edgepack.pipeline.passes import Passes
from edgepack.progress import Progress, silent
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepack.edge.fidelity.validate import Gates
    from edgepack.export.plan import ExportPlan
    from edgepack.pipeline.fidelity import ScoringOptions
    from edgepack.pipeline.ladder import Ladder
    from edgepack.pipeline.passes import PreparedExport, RecipeOptions
    from edgepack.pipeline.recipe import Recipe
    from edgepack.quant.types.targets import Target


@dataclass(frozen=True)
class PassesRequest:
    """What the user asked for.

    Attributes:
        model: a Hugging Face folder.
        recipe: the passes.
        target: the file type, or None to have it found.
        output: the file (with `pack`: the archive); None for the naming convention's name, here.
        max_bytes: of what is shipped: the GGUF and its adapters, or with `pack` the archive.
        pack: ship an archive instead of files.
        threads: that quantise; None for all processors.
    """

    model: Path
    recipe: Recipe
    target: Target | None = None
    output: Path | None = None
    max_bytes: int | None = None
    pack: bool = False
    threads: int | None = None

    def path_for(self, plan: ExportPlan) -> Path:
        """The final name of what is shipped."""
        name = file_name(plan.metadata, plan.target.label)
        return self.output or Path(name if not self.pack else f"{Path(name).stem}.edgepack")

    @property
    def folder(self) -> Path:
        """Where the files appear."""
        return self.output.parent if self.output else Path()


@dataclass(frozen=True)
class Written:
    """Files of one export.

    Attributes:
        prepared: what they were written from.
        path: the GGUF, or the archive.
        adapters: LoRA files beside it; an archive holds its own.
        ranks: rank of each correction.
    """

    prepared: PreparedExport
    path: Path
    adapters: tuple[Path, ...] = ()
    ranks: tuple[int, ...] = field(default=())

    @property
    def bytes(self) -> int:
        """Length of the GGUF or the archive."""
        return self.path.stat().st_size

    @property
    def shipped_bytes(self) -> int:
        """Length of everything."""
        return self.bytes + sum(path.stat().st_size for path in self.adapters)


class PassesExport:
    """One request with its passes; files appear under their final names whole or not at all.

    Args:
        request: what is wanted.
        options: of the passes; their folder must live until the end.
        progress: told of passes, exports and scoring.

    Raises:
        UsageError: goals that contradict each other, or an output that cannot be written.
        EdgepackError: whatever the checkpoint has wrong.
    """

    def __init__(self, request: PassesRequest, options: RecipeOptions, progress: Progress = silent) -> None:
        if request.output is not None:
            check_output(request.output)
        self.request, self.progress = request, progress
        self.passes = Passes(open_checkpoint(request.model), request.recipe, options)

    def outline(self) -> ExportPlan:
        """The plan of the request, without running what depends on the target; raises as `write` does for sizes."""
        request = self.request
        if request.target is None:
            return next(self._fitting())
        plan = self.passes.outline(request.target)
        if not request.pack and request.max_bytes is not None and self._least_bytes(plan) > request.max_bytes:
            raise target_too_large(plan, self._least_bytes(plan), request.max_bytes)
        return plan

    def write(self) -> Written:
        """Write the target that was asked for, or the largest that fits.

        Raises:
            UsageError: the size is not met; nothing is left under a final name.
            EdgepackError: whatever a pass finds wrong.
        """
        request = self.request
        first = self.outline()
        check_output(request.path_for(first), first.total_bytes)
        tried = None
        for plan in (first,) if request.target else self._fitting():
            tried = plan
            with tempfile.TemporaryDirectory(prefix=".edgepack-", dir=request.folder) as scratch:
                written = self._make(plan.target, Path(scratch))
                if request.max_bytes is None or written.shipped_bytes <= request.max_bytes:
                    return _moved(written, request.path_for(written.prepared.plan))
            self.passes.forget(plan.target)
        assert tried is not None
        assert request.max_bytes is not None
        if request.pack:
            raise archive_too_large(tried, request.max_bytes)
        raise target_too_large(tried, self._least_bytes(tried), request.max_bytes)

    def write_smallest(
        self, gates: Gates, text: Path | None, scoring: ScoringOptions, tell: Callable[[str], object]
    ) -> tuple[Written, Ladder]:
        """Try the ladder of types from small to large; write the first that clears `gates`.

        Args:
            gates: at least one bar.
            text: what is scored; None for the reference's own samples.
            scoring: how.
            tell: told one line for each type that was tried.

        Returns:
            What was written, and all that was tried.

        Raises:
            CheckFailedError: no type clears the gates; nothing is written.
        """
        request = self.request
        refuse_size_with_gates(request.max_bytes)
        sizes = {self.passes.outline(target).total_bytes: target for target in self._ladder}
        made: dict[str, Written] = {}
        with tempfile.TemporaryDirectory(prefix=".edgepack-", dir=request.folder) as scratch:

            def make(name: str, path: Path) -> tuple[Path, ...]:
                for earlier in made:
                    self.passes.forget(find_target(earlier))
                made[name] = self._make_files(find_target(name), path)
                return made[name].adapters

            rungs = [(target.name, size) for size, target in sorted(sizes.items())]
            ladder = climb(
                request.model, rungs, gates, text, scoring, Path(scratch), make=make, tell=tell, progress=self.progress
            )
            best = made[ladder.tried[-1].target]
            if request.pack:
                best = self._packed(best, Path(scratch))
            written = _moved(best, request.path_for(best.prepared.plan))
        return written, replace(ladder, path=written.path)

    def _fitting(self) -> Iterator[ExportPlan]:
        """Outlines from large to small that may meet the size."""
        limit = self.request.max_bytes
        refuse_no_goal(None, limit)
        assert limit is not None
        for target in self._ladder:
            plan = self.passes.outline(target)
            if worth_trying(plan, self._least_bytes(plan), limit, pack=self.request.pack):
                yield plan
        smallest = self.passes.outline(LADDER[-1])
        raise nothing_fits(smallest, self._least_bytes(smallest), limit)

    @property
    def _ladder(self) -> list[Target]:
        """The types that may be chosen, from large to small: a correction needs something that was rounded."""
        return [target for target in LADDER if target.default.is_quantized or not self.passes.corrections]

    def _least_bytes(self, plan: ExportPlan) -> int:
        """Bytes of the file and of the corrections beside it."""
        return plan.total_bytes + sum(correction_bytes(plan, step) for step in self.passes.corrections)

    def _make(self, target: Target, scratch: Path) -> Written:
        """What is shipped for `target`, in a scratch folder."""
        files = self._make_files(target, scratch / f"{target.name}.gguf")
        return self._packed(files, scratch) if self.request.pack else files

    def _make_files(self, target: Target, path: Path) -> Written:
        prepared = self.passes.prepare(target)
        write_gguf(prepared.plan, path, threads=self.request.threads, progress=self.progress)
        adapters, ranks = write_adapters(prepared, path, self.progress)
        return Written(prepared, path, adapters, ranks)

    def _packed(self, files: Written, scratch: Path) -> Written:
        """An archive of the files, whose members have the names that the files would have had."""
        files = _moved(files, scratch / f"{self.request.path_for(files.prepared.plan).stem}.gguf")
        archive = scratch / "archive.edgepack"
        threads = self.request.threads
        pack_archive(files.path, archive, include=files.adapters, threads=threads, progress=self.progress)
        return Written(files.prepared, archive, (), files.ranks)


def _moved(files: Written, path: Path) -> Written:
    """The files under the name `path`, adapters beside it."""
    adapters = tuple(
        each.replace(path.with_name(each.name.replace(files.path.stem, path.stem, 1))) for each in files.adapters
    )
    return replace(files, path=files.path.replace(path), adapters=adapters)
