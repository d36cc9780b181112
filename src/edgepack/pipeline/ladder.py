"""The gate as the input: the smallest type of file that says what the original says, found by trying.

How a file is made is the caller's choice, how it is judged `pipeline.fidelity`'s.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.edge.fidelity.validate import Gates, Validation, validate
from edgepack.errors import CheckFailedError
from edgepack.pipeline.fidelity import choose_chunking, open_candidate, open_reference, read_text, sample_text
from edgepack.progress import silent
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgepack.edge.fidelity.scorers.scorer import Chunking, Scorer
    from edgepack.pipeline.fidelity import ScoringOptions
    from edgepack.progress import Progress

# Types that need no importance matrix; `rungs` sorts them by the bytes that they take for the model at hand.
LADDER = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0", "bf16", "f32")


@dataclass(frozen=True)
class Rung:
    """One type of file that was tried.

    Attributes:
        target: its name, such as `gguf-q4km`.
        bytes: of the file and its adapters.
        validation: how it did; on the first chunks alone where that was enough to refuse it.
        passed: whether it cleared the gates.
    """

    target: str
    bytes: int
    validation: Validation
    passed: bool

    def __str__(self) -> str:
        """One line for people."""
        statistics = self.validation.statistics
        low, high = statistics.agreement.share_interval()
        return (
            f"{'passed' if self.passed else 'failed'} {self.target}: {format_size(self.bytes)}, agreement "
            f"{statistics.agreement.mean:.4f} ({low:.4f} to {high:.4f}), KL {statistics.divergence.mean:.2g}, "
            f"{statistics.tokens} tokens"
        )


@dataclass(frozen=True)
class Ladder:
    """What climbing gave.

    Attributes:
        tried: from small to large; the last one passed.
        path: the file that passed.
    """

    tried: tuple[Rung, ...]
    path: Path


def rungs(model: Path, targets: Sequence[str] = LADDER) -> list[tuple[str, int]]:
    """(target, exact bytes) of `targets` for the model at `model`, smallest first; of equal sizes the last listed."""
    from edgepack.export.mapped_model import open_model
    from edgepack.export.plan import plan_export
    from edgepack.quant.types.targets import find_target

    opened = open_model(model)
    sizes: dict[int, str] = {}
    for name in targets:
        target = find_target(name)
        sizes[plan_export(opened, target).total_bytes] = target.name
    return [(target, size) for size, target in sorted(sizes.items())]


def export_rung(model: Path, target: str, path: Path, progress: Progress = silent) -> tuple[Path, ...]:
    """Export `model` plainly as `target`: how a rung is made when nobody says otherwise. It has no adapters."""
    from edgepack.export.gguf_file import write_gguf
    from edgepack.export.mapped_model import open_model
    from edgepack.export.plan import plan_export
    from edgepack.quant.types.targets import find_target

    write_gguf(plan_export(open_model(model), find_target(target)), path, progress=progress)
    return ()


def climb(
    reference_path: Path,
    targets: Sequence[tuple[str, int]],
    gates: Gates,
    text_path: Path | None,
    options: ScoringOptions,
    folder: Path,
    *,
    make: Callable[[str, Path], tuple[Path, ...]] | None = None,
    tell: Callable[[str], object] = lambda _line: None,
    progress: Progress = silent,
) -> Ladder:
    """Make and judge files from small to large until one clears the gates; the others are removed.

    Args:
        reference_path: the original.
        targets: (target, bytes) as `rungs` gives them.
        gates: at least one bar.
        text_path: what is scored; None is the reference's own samples.
        options: how it is scored.
        folder: where the files are made, as `TARGET.gguf`; on the same disk as their final place.
        make: writes the file of a target and returns the adapters that belong to it; plain export when None.
        tell: told one line a rung.
        progress: of exports and scoring.

    Raises:
        CheckFailedError: not even the last one passes; the text says how it did.
    """
    build = make or (lambda target, path: export_rung(reference_path, target, path, progress))
    tried: list[Rung] = []
    with closing(open_reference(reference_path, options)) as reference:
        text = (read_text(text_path) if text_path else sample_text(reference)).text
        chunking = choose_chunking(reference, text, options)
        for target, _bytes in targets:
            path = folder / f"{target}.gguf"
            made = replace(options, ctx=chunking.ctx, adapters=build(target, path))
            tried.append(_judge(reference, target, path, text, chunking, gates, made))
            tell(str(tried[-1]))
            if tried[-1].passed:
                return Ladder(tuple(tried), path)
            for file in (path, *made.adapters):
                file.unlink()
    raise CheckFailedError(f"no type of file clears the gates; the largest tried: {tried[-1]}")


def _judge(
    reference: Scorer, target: str, path: Path, text: str, chunking: Chunking, gates: Gates, options: ScoringOptions
) -> Rung:
    """Score the text, or as much of it as shows that the file is far from the bar."""
    with closing(open_candidate(path, options)) as candidate:
        (found,) = validate(reference, [candidate], text, chunking, hopeless=lambda so_far: hopeless(so_far, gates))
    size = sum(file.stat().st_size for file in (path, *options.adapters))
    return Rung(target, size, found, found.passed(gates))


def hopeless(found: Validation, gates: Gates) -> bool:
    """Whether even the favourable end of an interval misses its gate."""
    statistics = found.statistics
    if found.tokens_differ is not None:
        return True
    if gates.min_agreement is not None and statistics.agreement.share_interval()[1] < gates.min_agreement:
        return True
    return gates.max_kl is not None and statistics.divergence.interval()[0] > gates.max_kl
