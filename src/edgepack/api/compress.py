"""`edgepack.compress`: a recipe run stage by stage; the work is `pipeline.stages`'."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.opening import ignore
from edgepack.api.places import local_path
from edgepack.api.values import FilePath, JsonObject, optional_path
from edgepack.edge.fidelity.outcome import finite
from edgepack.pipeline.stages.request import Compressed, CompressRequest
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.progress import Progress


@dataclass(frozen=True)
class CompressResult:
    """What a recipe gave.

    Attributes:
        done: the file that is shipped, and every stage with its figures.
    """

    done: Compressed

    @property
    def output(self) -> Path:
        """The last of GGUF, archive and certified archive."""
        return self.done.output

    def json(self) -> JsonObject:
        """The object that `edgepack compress --json` prints."""
        done = self.done
        return finite({
            "output": str(done.output), "bytes": done.bytes, "source_bytes": done.source_bytes, "ratio": done.ratio,
            "seconds": round(done.seconds, 3), "stages": [stage.as_json() for stage in done.stages],
        })  # fmt: skip


def compress(
    model: FilePath,
    recipe: FilePath,
    output: FilePath,
    *,
    device: str = "cpu",
    threads: int | None = None,
    metrics: FilePath | None = None,
    log: FilePath | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> CompressResult:
    """Run a recipe on a model: passes, export, pack, validate, certify, with its constraints checked after each.

    A stage whose inputs, settings and versions are those of an earlier run in the same folder is skipped.

    Args:
        model: a Hugging Face folder or a GGUF.
        recipe: a file of TOML or JSON.
        output: a folder for the files and what the stages keep; made where it is not there.
        device: torch's, for passes.
        threads: by default every core.
        metrics: a file in Prometheus' text format, written after every stage.
        log: a file that a line an event is added to.
        dry_run: check the recipe and plan the file; write nothing.
        force: replace files in the folder that no recipe made.
        progress: told of every stretch of work.
        note: told a line an event.

    Raises:
        RecipeError: the recipe is wrong, or its constraints cannot come true.
        CheckFailedError: a constraint or a gate is missed; the text has the figures. What was made stays.
        EdgepackError: whatever a stage finds wrong.
    """
    from edgepack.pipeline.stages.run import run_recipe

    request = CompressRequest(
        local_path(model, "stages are kept under the digests of its files"), Path(recipe), Path(output), device,
        threads, force, optional_path(metrics), optional_path(log),
        dry_run, progress, note,
    )  # fmt: skip
    return CompressResult(run_recipe(request))
