"""The stages of a recipe in Prometheus' text format, for the textfile collector of a node or a gateway to pick up.

Every run has a registry of its own. What is measured is `pipeline.stages.run`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import DependencyError
from edgepack.files.output import atomic_output

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.pipeline.stages.constraints import Verdict
    from edgepack.pipeline.stages.records import StageResult

_STAGE = {
    "edgepack_stage_seconds": "Wall time of the stage, of the run that did it.",
    "edgepack_stage_peak_memory_bytes": "Greatest memory of the process in the stage, mapped files aside.",
    "edgepack_stage_skipped": "1 where an earlier run had done the stage with the same inputs.",
}


class Metrics:
    """The file of one run; it is written after every stage, whole each time.

    Args:
        path: of the file; replaced, as a collector expects.

    Raises:
        DependencyError: prometheus_client is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from prometheus_client import CollectorRegistry, Gauge
        except ModuleNotFoundError as error:
            needed = "use pip install 'edgepack[compress]'"
            raise DependencyError(f"--metrics: '{error.name}' is not installed, {needed}") from None
        self._path, self._registry = path, CollectorRegistry()

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(name, about, labels, registry=self._registry)

        self._stage = {name: gauge(name, about, "stage") for name, about in _STAGE.items()}
        self._figure = gauge("edgepack_stage_figure", "What a stage measured.", "stage", "figure")
        self._limit = gauge("edgepack_constraint_limit", "The bar that the recipe sets.", "constraint")
        self._value = gauge("edgepack_constraint_value", "What is held against it.", "stage", "constraint")
        self._met = gauge("edgepack_constraint_met", "1 where the bar is cleared.", "stage", "constraint")
        self._success = gauge("edgepack_recipe_success", "1 when every stage is done and every constraint met.")

    def add(self, result: StageResult, verdicts: tuple[Verdict, ...]) -> None:
        """Take in a stage and how it did, and write the file."""
        values = (result.seconds, result.peak_memory_bytes, int(result.skipped))
        for gauge, value in zip(self._stage.values(), values, strict=True):
            gauge.labels(result.name).set(value)
        for name, figure in result.figures.items():
            if isinstance(figure, (int, float)):
                self._figure.labels(result.name, name).set(figure)
        for verdict in verdicts:
            self._limit.labels(verdict.name).set(verdict.limit)
            self._value.labels(result.name, verdict.name).set(verdict.value)
            self._met.labels(result.name, verdict.name).set(int(verdict.met))
        self.write()

    def succeeded(self) -> None:
        """Every stage is done."""
        self._success.set(1)
        self.write()

    def write(self) -> None:
        """Write the file as it stands."""
        from prometheus_client import generate_latest

        with atomic_output(self._path) as stream:
            stream.write(generate_latest(self._registry))
