"""What a run of a recipe is asked for and what it gives, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.pipeline.stages.records import StageResult


@dataclass(frozen=True)
class CompressRequest:
    """What is compressed, by which recipe, into which folder.

    Attributes:
        model: a Hugging Face folder or a GGUF.
        recipe: a file of TOML or JSON.
        output: a folder; made where it is not there.
        device: torch's, for passes.
        threads: None for all processors.
        force: replace files in the folder that no run of a recipe made.
        metrics: a file in Prometheus' text format, or None.
        log: a file that lines are added to, or None.
        dry_run: check and plan alone.
        progress: told of every stretch of work.
        tell: told a line an event.
    """

    model: Path
    recipe: Path
    output: Path
    device: str = "cpu"
    threads: int | None = None
    force: bool = False
    metrics: Path | None = None
    log: Path | None = None
    dry_run: bool = False
    progress: Progress = silent
    tell: Callable[[str], object] = lambda _line: None


@dataclass(frozen=True)
class Compressed:
    """What a recipe gave.

    Attributes:
        output: the file that is shipped: the last of GGUF, archive and certified archive; of a dry run what it
            would be.
        bytes: of it; of a dry run of the GGUF.
        source_bytes: of the source's tensors.
        stages: in order, those that were skipped too.
        seconds: wall time of this run.
    """

    output: Path
    bytes: int
    source_bytes: int
    stages: tuple[StageResult, ...]
    seconds: float

    @property
    def ratio(self) -> float:
        """Bytes of the source's tensors over bytes of the file."""
        return self.source_bytes / self.bytes
