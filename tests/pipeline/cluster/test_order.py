"""Results come in order and once, whatever the order of answers, losses and cuts; no cluster is needed to see it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shaky_backend import ShakyBackend, adding, squared

from edgepack.errors import NumericError, ResourceError
from edgepack.export.coded.crew import crew_coded
from edgepack.pipeline.cluster.backend import Answer
from edgepack.pipeline.cluster.board import Board
from edgepack.pipeline.cluster.crew import ClusterCrew
from edgepack.pipeline.cluster.ordered import TRIES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.quant.codecs.codec import Statistics


def crew_of(backend: ShakyBackend) -> ClusterCrew:
    return ClusterCrew(backend, Board(lambda _line: None))


@given(st.integers(1, 5), st.integers(0, 2**16), st.integers(0, 30), st.floats(0, 0.3))
def test_results_are_in_order_whatever_comes_first_or_is_lost(
    workers: int, seed: int, count: int, losses: float
) -> None:
    crew = crew_of(ShakyBackend(workers, seed, losses))
    found = list(crew.map(squared, crew.share(-1), range(count), need=lambda _piece: 1))
    assert found == [number * number for number in range(count)]


def test_no_more_pieces_are_under_way_than_twice_the_processors() -> None:
    backend = ShakyBackend(3)
    crew = crew_of(backend)
    assert len(list(crew.map(squared, crew.share(-1), range(100), need=lambda _piece: 1))) == 100
    assert backend.most_waiting <= 6


def test_an_error_of_the_work_is_raised_where_its_result_would_have_come() -> None:
    crew = crew_of(ShakyBackend(4, seed=3))
    results = crew.map(squared, crew.share(5), range(10), need=lambda _piece: 1)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(NumericError, match="piece 5"):
        next(results)


def test_a_piece_that_kills_every_worker_ends_the_run_with_one_line() -> None:
    backend = ShakyBackend(2, losses=1.0)
    crew = crew_of(backend)
    with pytest.raises(ResourceError, match=f"{TRIES} workers died over one piece of work"):
        list(crew.map(squared, crew.share(-1), range(3), need=lambda _piece: 1))


def test_a_piece_that_no_node_has_the_memory_for_is_refused_before_it_is_sent() -> None:
    backend = ShakyBackend(2, memory=1000)
    crew = crew_of(backend)
    with pytest.raises(ResourceError, match="needs 2 kB of memory, the largest node gives 1 kB"):
        list(crew.map(squared, crew.share(-1), [1], need=lambda _piece: 2000))
    assert not backend.asked


def summed(_context: None, piece: tuple[int, ...]) -> list[int]:
    return [number + 1 for number in piece]


def test_a_piece_whose_worker_had_too_little_memory_is_cut_and_stays_in_its_place() -> None:
    crew = crew_of(ShakyBackend(3, seed=1, shortages=0.3))
    pieces = [tuple(range(start, start + 8)) for start in range(0, 80, 8)]

    def halves(piece: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [piece[: len(piece) // 2], piece[len(piece) // 2 :]] if len(piece) > 1 else [piece]

    found = list(crew.map(summed, crew.share(None), pieces, need=len, halves=halves))
    assert [number for part in found for number in part] == list(range(1, 81))
    assert len(found) > len(pieces)


class Parts:
    """A leg whose parts are numbers."""

    def __init__(self, count: int) -> None:
        self.steps = count
        self.out: dict[tuple[int, int], Any] = {}
        self.seen: dict[int, list[Any]] = {}

    def feed(self, stage: int, step: int) -> tuple[Any]:
        return (self.out[stage - 1, step] if stage else step,)

    def took(self, stage: int, step: int, output: Any) -> None:
        assert self.out.setdefault((stage, step), output) == output
        self.out[stage, step] = output

    def finished(self, stage: int, result: list[Any]) -> None:
        assert stage == len(self.seen)
        self.seen[stage] = result


@given(st.integers(1, 5), st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 5), st.floats(0, 0.1))
def test_every_stage_sees_every_part_once_and_in_order_whoever_is_lost(
    workers: int, seed: int, stages: int, steps: int, losses: float
) -> None:
    crew, leg = crew_of(ShakyBackend(workers, seed, losses)), Parts(steps)
    done = list(crew.relay(adding, crew.share(None), range(stages), leg, need=1))
    assert done == list(range(stages))
    for stage in range(stages):
        assert leg.seen[stage] == [step + sum(range(stage)) for step in range(steps)]


def test_what_nodes_do_is_counted_by_node() -> None:
    board = Board(lambda _line: None)
    for node in "aab":
        board.answer(Answer(b"1234", None, node, 0.5, 1 << 20))
    board.lost("killed")
    assert board.as_json() == {
        "nodes": [
            {"node": "a", "pieces": 2, "seconds": 1.0, "peak_bytes": 1 << 20, "sent_bytes": 8},
            {"node": "b", "pieces": 1, "seconds": 0.5, "peak_bytes": 1 << 20, "sent_bytes": 4},
        ],
        "done_again": 1,
    }
    assert "a 2 pieces" in board.line()


def test_help_and_an_export_without_a_cluster_import_nothing_of_ray() -> None:
    script = (
        "import sys\n"
        "from edgepack.cli import main\n"
        "import edgepack.pipeline.export, edgepack.pipeline.cluster.opening, edgepack.export.gguf_file\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


class Tensor(NamedTuple):
    """What a crew asks of a planned matrix."""

    name: str
    rows: Any = SimpleNamespace(shape=(2, 2))


class Coding:
    """A run whose first and last matrices are coded together, with another between them."""

    plan = SimpleNamespace(tensors=[Tensor("a"), Tensor("v"), Tensor("b")])

    def alone(self) -> Coding:
        return self

    def known_of(self, _numbers: Sequence[int]) -> dict[str, Statistics]:
        return {}

    def knowing(self, _statistics: Mapping[str, Statistics]) -> Coding:
        return self

    def code(self, tensor: Tensor) -> str:
        return f"coded {tensor.name}"

    def together(self, tensor: Tensor) -> list[Tensor]:
        first, between, last = self.plan.tensors
        return [between] if tensor.name == "v" else [first, last]


@pytest.mark.parametrize("done", [0, 1, 2])
def test_matrices_that_are_coded_together_keep_their_places_in_the_file(done: int) -> None:
    backend, run = ShakyBackend(2, seed=2, losses=0.2), Coding()
    left = run.plan.tensors[done:]
    found: Any = list(crew_coded(run, left, crew_of(backend)))  # type: ignore[arg-type]  # stands for a run
    assert found == [(tensor, f"coded {tensor.name}") for tensor in left]
