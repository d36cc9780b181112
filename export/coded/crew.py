"""A variant's matrices coded by a crew: what a piece of work is, and the results in file order.

Coding one is `write`'s, who the crew is the caller's.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgepack.crew import Crew
    from edgepack.export.coded.outcome import Coded
    from edgepack.export.coded.plan import PlannedMatrix
    from edgepack.export.coded.write import CodingRun
    from edgepack.quant.codecs.codec import Statistics

_WORK_BYTES = 24  # a weight, of memory: itself, its codes and errors in float32 or wider


Piece = tuple[tuple[int, ...], "Mapping[str, Statistics]"]
"""Numbers of tensors that are coded together, and what is known of their inputs."""


def code_piece(run: CodingRun, piece: Piece) -> list[Coded | None]:
    """Code a tensor, or those that are coded together; what a worker does."""
    numbers, statistics = piece
    own = run.knowing(statistics)
    return [own.code(run.plan.tensors[number]) for number in numbers]


def crew_coded(
    run: CodingRun, tensors: Sequence[PlannedMatrix], crew: Crew
) -> Iterator[tuple[PlannedMatrix, Coded | None]]:
    """As `CodingRun.coded`, by a crew; matrices that are coded together are one piece of work."""
    context = crew.share(run.alone())
    numbers = {tensor.name: number for number, tensor in enumerate(run.plan.tensors)}
    wanted = [numbers[tensor.name] for tensor in tensors]  # a resumed run may begin within a group
    pieces: dict[tuple[int, ...], None] = {}
    for tensor in tensors:
        pieces[tuple(numbers[each.name] for each in run.together(tensor))] = None

    def need(piece: Piece) -> int:
        known = max((own.hessian.nbytes for own in piece[1].values() if isinstance(own.hessian, np.ndarray)), default=0)
        return known + _WORK_BYTES * max(prod(run.plan.tensors[number].rows.shape) for number in piece[0])

    sent = ((piece, run.known_of(piece)) for piece in pieces)
    results = zip(pieces, crew.map(code_piece, context, sent, need=need, with_torch=True), strict=True)
    ready: dict[int, Coded | None] = {}  # members of a group need not stand next to each other in the file
    for number in wanted:
        while number not in ready:
            piece, coded = next(results)
            ready |= dict(zip(piece, coded, strict=True))
        yield run.plan.tensors[number], ready.pop(number)
