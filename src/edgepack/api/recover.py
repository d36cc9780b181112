"""`edgepack.recover`: an adapter that gives back what compression lost; the work is left to `pipeline.adapting`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.adapter_output import CARD, READ_OFTEN, adapter_target, made_json, planned_json
from edgepack.api.opening import ignore
from edgepack.api.places import check_there, local_path
from edgepack.api.values import optional_path
from edgepack.files.claim import claimed_output
from edgepack.files.folders import scratch_beside
from edgepack.gguf.reader import read_header
from edgepack.packaging.pack import pack_archive
from edgepack.pipeline.adapting.card import recovery_card
from edgepack.pipeline.adapting.recover import forecast_recovery, recover_file
from edgepack.pipeline.adapting.recovery import Recovered, Sources, recovered_json
from edgepack.pipeline.adapting.settings import ORIGINAL, PUBLISHED_RATE, RecoverSettings
from edgepack.progress import silent
from edgepack.quantities import size_in_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.api.values import FilePath, JsonObject
    from edgepack.pipeline.adapting.settings import Forecast
    from edgepack.progress import Progress


@dataclass(frozen=True)
class RecoverResult:
    """What a recovery gave, or with a dry run would take.

    Attributes:
        output: the adapter, or the archive.
        recovered: its figures; None of a dry run.
        forecast: time and memory; None of a run.
    """

    output: Path
    recovered: Recovered | None = None
    forecast: Forecast | None = None

    def json(self) -> JsonObject:
        """The object that `edgepack recover --json` prints."""
        if self.forecast is not None:
            return planned_json(self.output, self.forecast)
        assert self.recovered is not None
        return made_json(self.output, recovered_json(self.recovered), self.recovered.bytes)


def recover(
    file: FilePath,
    reference: FilePath,
    text: FilePath,
    output: FilePath | None = None,
    *,
    teacher: FilePath | None = None,
    targets: str = ORIGINAL,
    answers: FilePath | None = None,
    hardest: int | None = None,
    share: float = 0.02,
    rank: int = 64,
    alpha: float | None = None,
    modules: Sequence[str] = (),
    rate: float | None = PUBLISHED_RATE,
    epochs: float = 3.0,
    steps: int | None = None,
    batch: int = 4,
    ctx: int = 256,
    imatrix: FilePath | None = None,
    pack: bool = False,
    max_memory: int | str | None = None,
    device: str = "cpu",
    seed: int = 0,
    threads: int = 0,
    resume: bool = False,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> RecoverResult:
    """Train a LoRA that gives back what compression lost of the text that it made hardest.

    Examples are ranked by their perplexity under the file itself, as llama.cpp runs it. The result is measured on
    pieces that nothing was learnt from, and held against a larger type of the same bytes.

    Args:
        file: the compressed GGUF.
        reference: its original: a Hugging Face folder or a GGUF.
        text: a UTF-8 file.
        output: the adapter, by default FILE-recovery-lora.gguf beside the file; with `pack` the archive.
        teacher: whose answers are learnt, in place of the reference.
        targets: `original`, what the teacher says of the text, or `text`, its next tokens.
        answers: a JSONL of questions and better answers to learn instead.
        hardest: how many examples are learnt from; by default a `share` of them.
        share: of the examples.
        rank: of the adapter.
        alpha: the product is scaled by alpha over the rank; by default 1.
        modules: ends of the names of projections, such as `q_proj`; all by default.
        rate: of AdamW; None for one by the model's width.
        epochs: how often each example is learnt from.
        steps: in place of epochs; 0 gives an adapter that changes nothing.
        batch: examples a step.
        ctx: tokens of an example.
        imatrix: an importance matrix that the larger type is made with.
        pack: write an archive of model, adapter and card.
        max_memory: bytes, or a size such as `16GB`.
        device: a torch device.
        seed: of everything that is drawn.
        threads: of llama.cpp; 0 for every core.
        resume: go on with an interrupted run of the same.
        dry_run: say how long it would take and how much memory; write nothing.
        force: replace a file that is there already; never an input.
        progress: told of each stretch of work.
        note: told what is done, a line at a time.

    Raises:
        UsageError: a file that is not there, a projection that the model lacks, numbers out of range.
        CalibrationError: the text is too short.
        NumericError: a loss became NaN; the text has the step, the last checkpoint is kept.
        DependencyError: the extra `train` is not installed.
        EdgepackError: file or original cannot be opened.
    """
    sources = Sources(
        Path(file),
        local_path(reference, READ_OFTEN),
        Path(text),
        None if teacher is None else local_path(teacher, READ_OFTEN),
        optional_path(answers),
        optional_path(imatrix),
    )
    settings = RecoverSettings(
        rank=rank, alpha=alpha, modules=tuple(modules), rate=rate, epochs=epochs, steps=steps, batch=batch, length=ctx,
        seed=seed, device=device, max_memory=size_in_bytes(max_memory), threads=threads, resume=resume, hardest=hardest,
        share=share, targets=targets,
    )  # fmt: skip
    check_there(*sources.paths)
    read_header(sources.file)
    name = f"{sources.file.stem}-recovery-lora.gguf"
    target = adapter_target(output, sources.file, name, pack=pack)
    if dry_run:
        return RecoverResult(target, forecast=forecast_recovery(sources, settings))
    with claimed_output(target, inputs=sources.paths, force=force):
        if not pack:
            return RecoverResult(target, recover_file(sources, target, target, settings, progress, note))
        with scratch_beside(target) as scratch:
            found = recover_file(sources, scratch / name, target, settings, progress, note)
            card = scratch / CARD
            card.write_text(recovery_card(found, sources.file.name, target.name), encoding="utf-8")
            pack_archive(sources.file, target, include=(found.output, card), progress=progress)
        return RecoverResult(target, found)
