"""Makes a point's file: an export of its options, packed by both coders, and whether it fits each device.

Exporting is `pipeline.export`'s, fitting `edge.fit`'s; which points there are is `catalogue`'s.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.edge.fit.choice import Fitter, FitWish
from edgepack.edge.fit.devices import find_device
from edgepack.edge.fit.memory import plan_memory
from edgepack.edge.fit.shape import read_shape
from edgepack.files.output import move_output
from edgepack.gguf.reader import read_header
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.unpack import unpack_archive
from edgepack.packaging.trust.policy import ANYONE
from edgepack.pipeline.export import run_export
from edgepack.pipeline.frontier.catalogue import IMPORTANCE
from edgepack.pipeline.frontier.points import DeviceFit, Point
from edgepack.pipeline.options import WIRE
from edgepack.pipeline.request import ExportRequest
from edgepack.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.fit.choice import Fit
    from edgepack.pipeline.frontier.points import Spec
    from edgepack.pipeline.frontier.request import StudyRequest

CODERS = {"planes": False, "grids": True}  # name → `pack_archive`'s `grids`


@dataclass(frozen=True)
class MadeFile:
    """Files of one point.

    Attributes:
        gguf: what runs.
        archive: what is shipped, where the export packed it; None of a plain GGUF.
        seconds: wall time.
        lines: what the export told.
    """

    gguf: Path
    archive: Path | None
    seconds: float
    lines: tuple[str, ...] = ()


class FileMaker:
    """Makes files of one study.

    Args:
        study: what is asked for.
        folder: where files, and what they share, are kept between points.
    """

    def __init__(self, study: StudyRequest, folder: Path) -> None:
        self.study, self.folder = study, folder

    def make(self, spec: Spec, limit: int | None) -> tuple[Point, MadeFile]:
        """Make and pack a point's file, of at most `limit` bytes; it is left in the folder.

        Raises:
            EdgepackError: whatever the export finds wrong.
        """
        made = self.export(spec, limit)
        began = time.monotonic()
        coder, shipped, archive = self._packed(made)
        seconds = time.monotonic() - began
        header = read_header(made.gguf)
        weights = sum(math.prod(tensor.shape) for tensor in header.tensors)
        devices = {name: device_fit(made.gguf, name) for name in self.study.devices}
        point = Point(
            spec.id, spec.family, made.gguf.stat().st_size, shipped, coder, weights, made.seconds, seconds, limit,
            devices=devices, lines=made.lines, version=__version__,
        )  # fmt: skip
        return point, MadeFile(made.gguf, archive, made.seconds, made.lines)

    def export(self, spec: Spec, limit: int | None) -> MadeFile:
        """The export alone."""
        began = time.monotonic()
        request = self.request(spec, limit)
        result = run_export(request)
        lines = () if result.made is None else (*result.made.notes, *result.made.lines)
        seconds = time.monotonic() - began
        if result.output.suffix != ".edgepack":
            return MadeFile(result.output, None, seconds, lines)
        gguf = self.gguf_of(spec)
        unpack_archive(result.output, gguf, trust=ANYONE, threads=request.threads, progress=request.progress)
        return MadeFile(gguf, result.output, seconds, lines)

    def request(self, spec: Spec, limit: int | None) -> ExportRequest:
        """The export of a spec; what an interrupted one left is gone on with."""
        study = self.study
        text = study.calibrations[spec.calibration] if spec.calibration else study.calibration
        options = dict(spec.options)
        packs = options.get("target") == WIRE
        output = self.gguf_of(spec).with_suffix(".edgepack") if packs else self.gguf_of(spec)
        if spec.needs == IMPORTANCE:
            options["imatrix"] = self._importance(spec, text)
        elif spec.needs:
            options["calibration"] = text
            if "passes" not in options:  # a pass decides itself how much of the text it takes
                options |= {"sequences": spec.sequences or study.sequences, "length": study.length}
            options["device"] = study.device
        if limit is not None:
            options["max_size"] = limit
        return ExportRequest(
            study.model, progress=study.progress, output=output, force=True, resume=True,
            threads=study.scoring.threads or None, shared=self.folder, cluster=study.cluster, **study.remote,
            **options,
        )  # fmt: skip

    def gguf_of(self, spec: Spec) -> Path:
        """Where a point's file lies."""
        return self.folder / f"{spec.slug}.gguf"

    def forget(self, spec: Spec) -> None:
        """Remove a point's files."""
        for suffix in (".gguf", ".edgepack"):
            self.gguf_of(spec).with_suffix(suffix).unlink(missing_ok=True)

    def _packed(self, made: MadeFile) -> tuple[str, int, Path]:
        """The smaller archive: its coder, its bytes and itself, kept beside the GGUF."""
        kept = made.gguf.with_suffix(".edgepack")
        if made.archive is not None:
            return "grids", made.archive.stat().st_size, made.archive
        found = {}
        for coder, grids in CODERS.items():
            path = made.gguf.with_suffix(f".{coder}")
            packed = pack_archive(
                made.gguf, path, grids=grids, threads=self.study.scoring.threads or None, progress=self.study.progress
            )
            found[coder] = (packed.bytes, path)
        best = min(found, key=lambda coder: found[coder][0])
        size, path = found.pop(best)
        move_output(path, kept)
        for _size, other in found.values():
            other.unlink()
        return best, size, kept

    def _importance(self, spec: Spec, text: Path) -> Path:
        """The importance matrix over the calibration text, collected once."""
        from edgepack.edge.llama.importance_collect import DEFAULT_CHUNK, CollectOptions
        from edgepack.pipeline.importance import ImportanceRun, manned
        from edgepack.quant.calibration.importance_file import write_importance

        study = self.study
        sequences = spec.sequences or study.sequences
        path = self.folder / f"importance-{spec.calibration or 'own'}-{sequences}.gguf"
        if not path.is_file():
            threads = study.scoring.threads
            options = CollectOptions(study.length or DEFAULT_CHUNK, sequences, spread=True, threads=threads)
            asked = ImportanceRun(study.model, text, path, options, located=study.located)
            with manned(asked, study.cluster) as run:
                write_importance(path, run.collect(resume=True, progress=study.progress))
        return path


def device_fit(gguf: Path, device: str) -> DeviceFit:
    """Whether a GGUF lies wholly on a device, and how many bytes a file of this model may have there.

    Raises:
        UsageError: no such device.
    """
    found = find_device(device)
    fitter = Fitter(read_shape(read_header(gguf)), found, FitWish())
    fit = fitter.choose()
    size = gguf.stat().st_size
    whole = fit.request.n_gpu_layers == len(fitter.shape.layers) + 1 or not found.is_gpu
    beside = _whole(fitter, fit) - size
    return DeviceFit(
        fit.fits and whole, fit.request.n_ctx, beside, max(fit.available - beside, 0), fit.tokens_per_second
    )


def _whole(fitter: Fitter, fit: Fit) -> int:
    """Bytes on the device with every layer there."""
    layers = len(fitter.shape.layers) + 1 if fit.device.is_gpu else 0
    request = replace(fit.request, n_gpu_layers=layers)
    plan = plan_memory(fitter.shape, request)
    return (plan.gpu if layers else plan.cpu).total + fitter.overhead(request)
