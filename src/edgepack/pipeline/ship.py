"""From scratch names to final ones: files appear where the user wants them whole, or as one archive, or not at all.

What is made is the makers', which of several tries is shipped the goals'.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.export.interrupted import journal_path
from edgepack.export.naming import file_name
from edgepack.files.claim import check_output, claimed_output
from edgepack.files.folders import make_scratch
from edgepack.files.names import hidden_path
from edgepack.files.output import atomic_output, move_output
from edgepack.packaging.derivation import MEMBER, beside_path, encode
from edgepack.pipeline.derivation import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from edgepack.pipeline.outline import Made, Outline
    from edgepack.pipeline.request import ExportRequest


@dataclass(frozen=True)
class Shipped:
    """What lies under final names.

    Attributes:
        made: how it came to be; its own paths are gone.
        path: the GGUF, its first shard, or the archive.
        files: every file of the model.
        adapters: LoRA files beside it; an archive holds its own.
        projector: the file of what sees beside it, likewise.
    """

    made: Made
    path: Path
    files: tuple[Path, ...]
    adapters: tuple[Path, ...] = ()
    projector: Path | None = None

    @property
    def bytes(self) -> int:
        """Of the model's files, or of the archive."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def total_bytes(self) -> int:
        """Of everything."""
        beside = (*self.adapters, *([] if self.projector is None else [self.projector]))
        return self.bytes + sum(path.stat().st_size for path in beside)


class Shipment:
    """Where the files of one export go; names are claimed for the length of a `with` block.

    Args:
        request: names the output, or leaves it to the GGUF naming convention.
    """

    def __init__(self, request: ExportRequest) -> None:
        self._request, self._recorder = request, Recorder(request)
        self._claims, self._claimed = ExitStack(), set[Path]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._claims.close()

    def path_for(self, outline: Outline) -> Path:
        """The final name of what is shipped."""
        if self._request.path is not None:
            return self._request.path
        name = Path(file_name(outline.metadata, outline.label))
        return name.with_name(f"{name.stem}.edgepack") if self._request.packs else name

    def claim_named(self) -> None:
        """Claim, before anything is opened, an output that was named; raises as `files.output.claimed_output`."""
        if self._request.path is not None:
            self._claim(self._request.path)

    def claim(self, outline: Outline) -> None:
        """Claim the output before long work, and check that it has room; raises as `files.output.claimed_output`."""
        path = self.path_for(outline)
        self._claim(path)
        for suffix in () if self._request.packs else outline.beside:
            self._claim(path.with_name(f"{path.stem}{suffix}.gguf"), again=self._request.resume)
        if outline.projector is not None and not self._request.packs:
            self._claim(path.with_name(outline.projector), again=self._request.resume)
        if self._request.provenance and not self._request.packs:
            self._claim(beside_path(path), again=self._request.resume)
        check_output(path, outline.bytes, force=True)

    def _claim(self, path: Path, *, again: bool = False) -> None:
        """Claim a name; `again` takes what an interrupted run may have left under it."""
        if path not in self._claimed:
            claim = claimed_output(path, inputs=self._request.inputs, force=self._request.force or again)
            self._claims.enter_context(claim)
            self._claimed.add(path)

    def check(self, outline: Outline) -> None:
        """Check, for a dry run, that the output could be written; raises as `files.output.check_output`."""
        check_output(self.path_for(outline), inputs=self._request.inputs, force=True)

    @contextmanager
    def scratch(self, outline: Outline) -> Iterator[Path]:
        """A hidden folder beside the output, so on its disk; stays only while an interrupted try can go on in it."""
        path = self.path_for(outline)
        folder = hidden_path(path, "scratch")
        make_scratch(folder, path)
        try:
            yield folder
        finally:
            if not list(folder.glob(journal_path(Path("*")).name)):
                shutil.rmtree(folder, ignore_errors=True)

    def scratch_name(self, outline: Outline, folder: Path) -> Path:
        """What a GGUF is called until it is shipped; an archive keeps it under this name."""
        return folder / f"{self.path_for(outline).stem}.gguf"

    def packed(self, made: Made, folder: Path) -> Made:
        """The files with their archive, where an archive is shipped and none was made yet."""
        if not self._request.packs or made.archive is not None:
            return made
        from edgepack.packaging.pack import pack_archive

        files = _moved(made, self.scratch_name(made.outline, folder))  # members have the names that files would have
        archive, threads = folder / "archive.edgepack", self._request.threads
        origin = self._recorder.write(files, folder / MEMBER)
        include = (*files.beside, origin)
        pack_archive(files.gguf, archive, include=include, threads=threads, progress=self._request.progress)
        return replace(files, archive=archive)

    def bytes_of(self, made: Made) -> int:
        """What would be shipped."""
        return made.archive.stat().st_size if self._request.packs and made.archive else made.shipped_bytes

    def deliver(self, made: Made) -> Shipped:
        """Move what was made under its final names; what lies there already stays."""
        path = self.path_for(made.outline)
        if self._request.packs:
            assert made.archive is not None
            if made.archive != path:
                move_output(made.archive, path)
            return Shipped(made, path, (path,))
        moved = made if made.gguf == path or len(made.files) > 1 else _moved(made, path)
        if self._request.provenance:
            with atomic_output(beside_path(moved.gguf)) as stream:
                stream.write(encode(self._recorder.derivation(moved.outline, (*moved.files, *moved.beside))))
        return Shipped(moved, moved.gguf, moved.files, moved.adapters, moved.projector)


def _moved(made: Made, path: Path) -> Made:
    """The same files with the GGUF at `path`, its adapters and what sees beside it."""
    adapters = tuple(path.with_name(each.name.replace(made.gguf.stem, path.stem, 1)) for each in made.adapters)
    for old, new in zip((*made.adapters, made.gguf), (*adapters, path), strict=True):
        move_output(old, new)
    projector = None if made.projector is None else path.with_name(made.projector.name)
    if made.projector is not None and projector is not None:
        move_output(made.projector, projector)
    return replace(made, files=(path,), adapters=adapters, projector=projector)
