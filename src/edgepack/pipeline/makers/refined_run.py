"""A refinement under way: what is measured of a model once, in a scratch folder that a kill leaves for `--resume`.

Allocating and rounding are `export.refine`'s, what a request means `makers.refined`'s.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.pipeline.makers.wire_scratch import curvature_place, own_scratch, run_digest
from edgepack.quant.refine.input_rounding import InputRounding, measure_input_rounding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgepack.crew import Crew
    from edgepack.export.refine.model import RefinedModel
    from edgepack.export.refine.values import RefineSettings
    from edgepack.model import Checkpoint
    from edgepack.pipeline.makers.wire_run import Calibration
    from edgepack.progress import Progress
    from edgepack.quant.calibration.curvature_store import CurvatureStore

SEQUENCES = 64  # of the text, as importance matrices take them
SEED = 0  # of the labels that curvature draws
_INPUT_SEQUENCES = 4  # of them, that say how inputs are rounded: a mean over thousands of tokens is sharp enough


@dataclass(frozen=True)
class RunOptions:
    """What a run does beside its model and text.

    Attributes:
        pre: the pre-tokenizer's name where its structure is not known.
        device: a torch device.
        threads: None for one a processor.
        resume: whether to go on with what an interrupted run of the same left.
        progress: told of each step.
        shared: a folder in which what is measured stays for other runs of the same model and text; None keeps none.
        crew: who measures and rounds in place of threads; None for this process.
    """

    pre: str | None
    device: str
    threads: int | None
    resume: bool
    progress: Progress
    shared: Path | None = None
    crew: Crew | None = None


@contextmanager
def refined_run(
    checkpoint: Checkpoint, output: Path, settings: RefineSettings, calibration: Calibration, options: RunOptions
) -> Iterator[RefinedModel]:
    """The model, measured; its scratch lies beside `output` and goes when the block ends, unless it was killed.

    With `options.shared` it lies there and stays: matrices that were rounded to a type serve every later file.

    Raises:
        CalibrationError: the text is one line repeated.
        UnsupportedModelError: its curvature cannot be measured.
        NumericError: NaN or infinity.
    """
    from edgepack.export.refine.model import RefinedModel

    digest = run_digest((calibration.tokens, asdict(settings), options.pre, options.device), checkpoint)
    alone = options.shared is None
    folder = output.parent / f".edgepack-refine-{output.name}"
    if options.shared is not None:
        folder = options.shared / f"refined-{digest[:32]}"
    own_scratch(folder, output, digest, resume=options.resume or not alone)
    try:
        place = curvature_place(options.shared, folder, calibration.tokens, checkpoint, output)
        store = _measured(checkpoint, place, calibration, options)
        inputs = _input_rounding(checkpoint, place / "inputs.npz", calibration, options)
        yield RefinedModel(
            checkpoint, store, inputs, settings, folder, pre=options.pre, threads=options.threads,
            progress=options.progress, crew=options.crew,
        )  # fmt: skip
    except Exception:
        if alone:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if alone:
        shutil.rmtree(folder, ignore_errors=True)


def _measured(checkpoint: Checkpoint, folder: Path, calibration: Calibration, options: RunOptions) -> CurvatureStore:
    from edgepack.quant.calibration.curvature import measure
    from edgepack.quant.calibration.curvature_store import CurvatureStore

    store = CurvatureStore(folder / "curvature")
    if not store.complete:
        store.fill(
            measure(
                checkpoint, calibration.tokens, folder / "entering", device=options.device, seed=SEED,
                progress=options.progress, crew=options.crew,
            )
        )  # fmt: skip
    return store


def _input_rounding(
    checkpoint: Checkpoint, path: Path, calibration: Calibration, options: RunOptions
) -> Mapping[str, InputRounding]:
    """Measured on a few sequences, spread over all; kept in `path`."""
    if not path.is_file():
        step = max(1, len(calibration.tokens) // _INPUT_SEQUENCES)
        tokens = np.ascontiguousarray(calibration.tokens[::step][:_INPUT_SEQUENCES])
        found = measure_input_rounding(checkpoint, tokens, device=options.device, progress=options.progress)
        partial = path.with_name("partial.npz")
        np.savez(partial, **_flat(found))  # type: ignore[arg-type]  # names of arrays are what they are
        partial.replace(path)
    return _read(path)


def _flat(found: Mapping[str, InputRounding]) -> dict[str, np.ndarray]:
    arrays = {f"0/{name}": np.array(each.mean_square) for name, each in found.items()}
    return arrays | {f"{block}/{name}": e for name, each in found.items() for block, e in each.errors.items()}


def _read(path: Path) -> dict[str, InputRounding]:
    with np.load(path) as arrays:
        squares = {key[2:]: float(arrays[key]) for key in arrays if key.startswith("0/")}
        errors: dict[str, dict[int, np.ndarray]] = {name: {} for name in squares}
        for key in arrays:
            block, _, name = key.partition("/")
            if block != "0":
                errors[name][int(block)] = arrays[key]
    return {name: InputRounding(square, errors[name]) for name, square in squares.items()}
