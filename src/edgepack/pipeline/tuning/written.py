"""The tuned file: the same tensors of the same types, some with other bytes, and keys that say how they came about."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import numpy as np

from edgepack.files.output import atomic_output
from edgepack.gguf import keys
from edgepack.gguf.types import f32, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.tuning.parts import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import Value
    from edgepack.quant.tuning.loop import Outcome
    from edgepack.quant.tuning.settings import TuningSettings
    from edgepack.quant.tuning.tensors import TunedTensor


def tuning_metadata(
    header: GGUFHeader, outcome: Outcome, settings: TuningSettings, tokens: NDArray[np.int64]
) -> dict[str, Value]:
    """The file's keys and how it was tuned; a certificate speaks of the file before and is left out."""
    kept = {
        key: value
        for key, value in header.metadata.items()
        if key != keys.CERTIFICATE and not key.startswith(keys.TUNING)
    }
    steps, best = (outcome.planned, outcome.best.step), outcome.best.held_out
    return kept | _about(steps, (outcome.judged[0].held_out, best), settings, tokens)


def _about(
    steps: tuple[int, int], divergence: tuple[float, float], settings: TuningSettings, tokens: NDArray[np.int64]
) -> dict[str, Value]:
    """How a file was tuned, of one length whatever the figures are: steps planned and best, divergence around it."""
    return {
        keys.TUNING_STEPS: u32(steps[0]),
        keys.TUNING_BEST_STEP: u32(steps[1]),
        keys.TUNING_PARTS: string(" ".join(part for part in PARTS if part in settings.parts)),
        keys.TUNING_MOVES: string(settings.moves),
        keys.TUNING_RATE: f32(settings.rate),
        keys.TUNING_SEED: u32(settings.seed),
        keys.TUNING_TOKENS: u32(tokens.size),
        keys.TUNING_TEXT_SHA256: string(hashlib.sha256(np.ascontiguousarray(tokens, "<i8").tobytes()).hexdigest()),
        keys.TUNING_KL_BEFORE: f32(divergence[0]),
        keys.TUNING_KL_AFTER: f32(divergence[1]),
    }


def reserved_metadata(settings: TuningSettings) -> dict[str, Value]:
    """As many bytes of metadata as a tuned file will say of its tuning, whatever comes of it."""
    return _about((0, 0), (0.0, 0.0), settings, np.zeros(0, np.int64))


def copy_file(path: Path, output: Path) -> None:
    """The file as it was, under the output's name."""
    with path.open("rb") as source, atomic_output(output, path.stat().st_size) as stream:
        shutil.copyfileobj(source, stream)


def write_tuned(
    path: Path, header: GGUFHeader, tensors: Mapping[str, TunedTensor], metadata: Mapping[str, Value], output: Path
) -> None:
    """The file with tuned tensors' bytes and other keys."""
    with path.open("rb") as source, atomic_output(output, path.stat().st_size) as stream:
        writer = GGUFWriter(stream, metadata, header.tensors)
        writer.write_header()
        for info in header.tensors:
            if info.name in tensors:
                writer.write(info.name, tensors[info.name].blocks().tobytes())
                continue
            source.seek(header.data_start + info.offset)
            writer.write(info.name, source.read(info.nbytes))
        writer.close()
