"""What is tried until the goal is reached: the target given, the largest that fits, the smallest that passes.

The same for every maker. A scalar in place of a ladder is `goals.scalar`'s; files are made by `pipeline.makers`,
judged by `pipeline.goals.judging` and shipped by `pipeline.ship`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from edgepack.errors import CheckFailedError, UsageError
from edgepack.pipeline.goals.prediction import GatePrediction
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from edgepack.pipeline.goals.judging import Judge, Rung
    from edgepack.pipeline.outline import Made, Outline
    from edgepack.pipeline.request import ExportRequest
    from edgepack.pipeline.ship import Shipment, Shipped

Setting_contra = TypeVar("Setting_contra", contravariant=True)
Step = TypeVar("Step")


class Maker(Protocol[Setting_contra]):
    """Makes files of one kind of target, for any setting of it: a type, codecs, a scale."""

    advice: str  # what a person may do when the target is too large

    def outline(self, setting: Setting_contra) -> Outline:
        """The file, exact to the byte where it can be, without work."""
        ...

    def make(self, setting: Setting_contra, path: Path) -> Made:
        """Write the file to `path`, and what belongs beside it."""
        ...

    def forget(self, setting: Setting_contra) -> None:
        """Remove what making left in scratch; nothing of it may be read any more."""
        ...


@dataclass(frozen=True)
class Reached:
    """How a goal was reached.

    Attributes:
        shipped: the files.
        tried: what was judged on the way, in order; the last one passed.
    """

    shipped: Shipped
    tried: tuple[Rung, ...] = field(default=())


def reach_given(maker: Maker[Step], setting: Step, request: ExportRequest, shipment: Shipment) -> Reached:
    """Make the target that was asked for.

    Raises:
        UsageError: it exceeds the size that was asked for; nothing is left under a final name.
    """
    outline, limit = maker.outline(setting), request.max_bytes
    if limit is not None and not request.packs and outline.is_exact and outline.shipped_bytes > limit:
        raise too_large(maker, outline, outline.shipped_bytes, limit)
    shipment.claim(outline)
    if not request.packs and (limit is None or outline.is_exact):
        return Reached(shipment.deliver(maker.make(setting, shipment.path_for(outline))))
    reached = _try(maker, setting, outline, request, shipment)
    if isinstance(reached, int):
        assert limit is not None
        raise archive_too_large(maker, outline, limit) if request.packs else too_large(maker, outline, reached, limit)
    return reached


def reach_size(maker: Maker[Step], ladder: Sequence[Step], request: ExportRequest, shipment: Shipment) -> Reached:
    """Make the largest that fits.

    Args:
        maker: of the files.
        ladder: settings from large to small.
        request: has a size.
        shipment: where files go.

    Raises:
        UsageError: not even the smallest fits.
    """
    for setting, outline in fitting(maker, ladder, request):
        shipment.claim(outline)
        reached = _try(maker, setting, outline, request, shipment)
        if not isinstance(reached, int):
            return reached
        maker.forget(setting)
    raise nothing_fits(maker.outline(ladder[-1]), request.max_bytes or 0)


def fitting(maker: Maker[Step], ladder: Sequence[Step], request: ExportRequest) -> Iterator[tuple[Step, Outline]]:
    """Settings from large to small whose file may meet the size.

    Raises:
        UsageError: after the last, when none may.
    """
    limit, found = request.max_bytes or 0, False
    for setting in ladder:
        outline = maker.outline(setting)
        if outline.shipped_bytes * (outline.least_packed_share if request.packs else 1) <= limit:
            found = True
            yield setting, outline
    if not found:
        raise nothing_fits(maker.outline(ladder[-1]), limit)


def _try(
    maker: Maker[Step], setting: Step, outline: Outline, request: ExportRequest, shipment: Shipment
) -> Reached | int:
    """Make and ship one setting; the bytes that it takes where they are too many."""
    limit = request.max_bytes
    with shipment.scratch(outline) as folder:
        made = shipment.packed(maker.make(setting, shipment.scratch_name(outline, folder)), folder)
        size = shipment.bytes_of(made)
        return size if limit is not None and size > limit else Reached(shipment.deliver(made))


def reach_gates(
    maker: Maker[Step],
    ladder: Sequence[Step],
    judge: Judge,
    request: ExportRequest,
    shipment: Shipment,
) -> Reached:
    """Make the smallest that clears the gates; the others are removed.

    Args:
        maker: of the files.
        ladder: settings in any order; of settings of equal sizes the first is tried.
        judge: holds files against the original.
        request: is told of each try.
        shipment: where files go.

    Raises:
        CheckFailedError: not even the largest passes; the text says how it did.
    """
    by_size = {maker.outline(setting).bytes: setting for setting in reversed(ladder)}
    settings = [by_size[size] for size in sorted(by_size)]
    first = maker.outline(settings[0])
    shipment.claim(first)
    with shipment.scratch(first) as folder:
        tried, made = climb(maker, settings, judge, folder, request.tell)
        return Reached(shipment.deliver(shipment.packed(made, folder)), tried)


def climb(
    maker: Maker[Step], settings: Sequence[Step], judge: Judge, folder: Path, tell: Callable[[str], object]
) -> tuple[tuple[Rung, ...], Made]:
    """Find the smallest that passes; what is next smaller has failed, or there is none.

    Args:
        maker: of the files.
        settings: from small to large.
        judge: holds files against the original.
        folder: where files are made, as `TARGET.gguf`; only the one that is given back stays.
        tell: told one line a try.

    Returns:
        What was tried, from small to large up to the one that is given back.

    Raises:
        CheckFailedError: none passes, or there is none.
    """
    prediction = GatePrediction([maker.outline(setting) for setting in settings], judge.gates)
    failed, passed = -1, len(settings)  # rungs between them are open
    tried: dict[int, Rung] = {}
    best: Made | None = None
    while passed - failed > 1:
        rung = prediction.next_rung(failed, passed)
        outline = maker.outline(settings[rung])
        made = maker.make(settings[rung], folder / f"{outline.target}.gguf")
        tried[rung] = judge(outline.target, made.gguf, made.adapters)
        tell(str(tried[rung]))
        prediction.learn(rung, tried[rung].validation)
        if not tried[rung].passed:
            failed = rung
            _remove(made)
            maker.forget(settings[rung])
            continue
        if best is not None:
            _remove(best)
            maker.forget(settings[passed])
        passed, best = rung, made
    if best is None:
        last = f"; the largest tried: {tried[max(tried)]}" if tried else ": there is none that is larger"
        raise CheckFailedError(f"no type of file clears the gates{last}")
    return tuple(tried[rung] for rung in sorted(tried) if rung <= passed), best


def _remove(made: Made) -> None:
    for file in (*made.files, *made.adapters):
        file.unlink()


def too_large(maker: Maker[Step], outline: Outline, size: int, limit: int) -> UsageError:
    """The target that was asked for makes more than the size that was asked for."""
    return UsageError(
        f"--max-size: {outline.target} makes {format_size(size)}, more than {format_size(limit)}; {maker.advice}"
    )


def archive_too_large(maker: Maker[Step], outline: Outline, limit: int) -> UsageError:
    """The archive of the target that was asked for is larger than the size that was asked for."""
    return UsageError(
        f"--max-size: the archive as {outline.target} is larger than {format_size(limit)}; {maker.advice}"
    )


def nothing_fits(smallest: Outline, limit: int) -> UsageError:
    """Not even the smallest meets the limit."""
    return UsageError(
        f"--max-size {format_size(limit)}: the least possible is {format_size(smallest.shipped_bytes)}"
        f" as {smallest.target}"
    )
