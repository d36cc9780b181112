"""`edgepack.analyze`: how many directions a model uses; the spectra are `quant.passes.lowrank.analysis`'s."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.values import FilePath, JsonObject, optional_path
from edgepack.errors import DependencyError, UsageError
from edgepack.pipeline.located import opened_checkpoint_at, opened_place
from edgepack.progress import silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.pipeline.architecture import Architecture
    from edgepack.progress import Progress
    from edgepack.quant.passes.lowrank.analysis import ModelAnalysis


@dataclass(frozen=True)
class Analysis:
    """Spectra of a model.

    Attributes:
        model: as it was named.
        text: what its activations were measured over; empty for nothing.
        found: the spectra of weights, and of activations where there was a text.
    """

    model: Path
    text: str
    found: ModelAnalysis

    def json(self) -> JsonObject:
        """The object that `edgepack analyze --json` prints."""
        return {"model": self.model.name, "text": self.text, **self.found.as_json()}

    def html(self) -> str:
        """A self-contained page with plots."""
        from edgepack.quant.passes.lowrank.report import render_analysis

        return render_analysis(self.model.name, self.text, self.found)


def analyze(
    model: FilePath,
    *,
    text: FilePath | None = None,
    own_samples: bool = False,
    sequences: int = 32,
    length: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Analysis:
    """Spectra of a model's weights, and of its activations over a text: how many directions they really use.

    Args:
        model: a Hugging Face folder, a URL of one as text, or a GGUF.
        text: a UTF-8 text file to measure activations over; None measures none.
        own_samples: measure them over text that the model writes itself.
        sequences: pieces of text.
        length: tokens in a piece; by default 512, or the model's context.
        device: torch's.
        progress: told of blocks.

    Raises:
        UsageError: a text and the model's own samples.
        DependencyError: torch is not installed.
        CalibrationError: the text cannot be used.
        NumericError: NaN or infinity among the weights; the text names the layer.
    """
    if text is not None and own_samples:
        raise UsageError("--text and --own-samples: expected one of them, got both")
    try:
        from edgepack.quant.passes.lowrank.analysis import analyse
        from edgepack.quant.passes.run import PassRun
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"analyze: '{error.name}' is not installed, use pip install 'edgepack[compress]'"
        ) from None
    file = optional_path(text)
    with opened_checkpoint_at(model) as checkpoint:
        tokens = _tokens(checkpoint, file, own_samples, sequences, length, device)
        found = analyse(checkpoint, PassRun(Path(), tokens, device=device, progress=progress))
    origin = file.name if file else f"{sequences} samples of the model" if own_samples else ""
    return Analysis(Path(model), origin, found)


def architecture_of(model: FilePath) -> Architecture:
    """What a model is: shape, parameters by part, memory by context length, sizes by target. Reads no weights.

    Args:
        model: a Hugging Face folder, a URL of one as text, or a GGUF.

    Raises:
        EdgepackError: the source is not sound, or no architecture that is known.
    """
    from edgepack.pipeline.architecture import read_architecture

    with opened_place(model, None) as (path, located):
        return read_architecture(path, None if located is None else located.checkpoint)


def _tokens(
    checkpoint: Checkpoint, text: Path | None, own: bool, sequences: int, length: int | None, device: str
) -> NDArray[np.int64] | None:
    from edgepack.quant.calibration.text import own_samples, text_sequences
    from edgepack.text_file import read_text

    if own:
        return own_samples(checkpoint, length=length, sequences=sequences, device=device)
    if text is None:
        return None
    return text_sequences(checkpoint, read_text(text), length=length, sequences=sequences)
