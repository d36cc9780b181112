"""A ladder ends at the smallest that passes, wherever it begins; files of other rungs are gone."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.edge.fidelity.gates import Gates
from edgepack.errors import CheckFailedError
from edgepack.pipeline.goals.ladder import climb
from edgepack.pipeline.outline import Made, Outline, TensorRow

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = 1_000_000


@dataclass
class SizedMaker:
    """Files whose only content is their setting, in bits a weight."""

    advice: str = ""
    forgotten: list[float] = field(default_factory=list)

    def outline(self, bits: float) -> Outline:
        row = TensorRow("w", (WEIGHTS,), "F32", "Q8_0", 1)
        size = int(bits * WEIGHTS / 8)
        return Outline(f"bits-{bits}", "", size, size, 0, (row,), {})

    def make(self, bits: float, path: Path) -> Made:
        path.write_text(str(bits))
        return Made(self.outline(bits), (path,))

    def forget(self, bits: float) -> None:
        self.forgotten.append(bits)


@dataclass
class BarJudge:
    """Passes files of at least so many bits; its divergences are what they are."""

    least_bits: float
    divergence: Any
    gates: Gates = field(default_factory=lambda: Gates(max_kl=0.01))

    def __call__(self, target: str, path: Path, _adapters: tuple[Path, ...]) -> Any:
        bits = float(path.read_text())
        statistics = SimpleNamespace(divergence=SimpleNamespace(mean=self.divergence(bits)))
        return SimpleNamespace(
            target=target, passed=bits >= self.least_bits, validation=SimpleNamespace(statistics=statistics)
        )


@given(
    rungs=st.lists(st.floats(1.5, 16, allow_nan=False), min_size=1, max_size=12, unique=True).map(sorted),
    least=st.floats(1, 17, allow_nan=False),
    scale=st.floats(1e-6, 1e3, allow_nan=False),
)
def test_the_smallest_that_passes_is_found_whatever_divergences_suggest(
    rungs: list[float], least: float, scale: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, maker = tmp_path_factory.mktemp("climb"), SizedMaker()
    judge = cast("Any", BarJudge(least, lambda bits: scale * 4**-bits))
    passing = [bits for bits in rungs if bits >= least]
    if not passing:
        with pytest.raises(CheckFailedError, match="no type of file clears the gates"):
            climb(maker, rungs, judge, folder, lambda _line: None)
        assert not list(folder.iterdir())
        return
    tried, made = climb(maker, rungs, judge, folder, lambda _line: None)
    assert float(made.gguf.read_text()) == passing[0]
    assert list(folder.iterdir()) == [made.gguf]
    assert [rung.passed for rung in tried] == [False] * (len(tried) - 1) + [True]
    assert len(tried) == 1 or tried[-2].target == f"bits-{rungs[rungs.index(passing[0]) - 1]}"


def test_a_model_that_does_as_expected_takes_two_tries(tmp_path: Path) -> None:
    told: list[str] = []
    rungs = [2.6, 3.4, 3.9, 4.9, 5.7, 6.6, 8.5, 16.0]
    judge = cast("Any", BarJudge(6.6, lambda bits: 0.0066 if bits > 6 else 0.014))
    climb(SizedMaker(), rungs, judge, tmp_path, told.append)
    assert len(told) == 2
