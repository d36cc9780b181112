"""What a part of `bench_learning` is: its rows, what each costs, and what is claimed of them; parts are found by name.

A part NAME lies in `learning_NAME.py` and has `rows(plan)` and `claims(found)`; adding a file adds a part.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench_passes import Bench, Measured, Row

PREFIX = "learning_"


@dataclass(frozen=True)
class Plan:
    """What every row of a run shares.

    Attributes:
        model: a Hugging Face folder.
        texts: the folder that `fidelity_text` wrote.
        steps: of every training.
        batch: sequences a step.
        length: tokens of a sequence.
        sparsities: that are pruned to.
        threads: of torch and llama.cpp.
    """

    model: Path
    texts: Path
    steps: int
    batch: int
    length: int
    sparsities: tuple[float, ...] = (0.6, 0.65, 0.7)
    threads: int = 1

    @property
    def learning(self) -> str:
        """The keys of a pass that trains, as `--pass` spells them."""
        return f"steps={self.steps},batch={self.batch}"


class LearningRow(Protocol):
    """One line of the table.

    Attributes:
        label: names it.
        sequences: that go through the model forwards and backwards; what the forecast counts.
    """

    @property
    def label(self) -> str:
        """As above."""
        ...

    @property
    def sequences(self) -> int:
        """As above."""
        ...

    def measure(self, bench: Bench, folder: Path) -> Measured:
        """Make it in an empty folder and score it."""
        ...


@dataclass(frozen=True)
class PassRow:
    """A row that is made by passes and a target.

    Attributes:
        row: as `bench_passes` has it.
        sequences: as `LearningRow.sequences`; 0 where nothing is trained.
        check: reads the finished file and gives a few words for the last column; None for nothing.
    """

    row: Row
    sequences: int = 0
    check: Callable[[Path], str] | None = None

    @property
    def label(self) -> str:
        """The row's."""
        return self.row.label

    def measure(self, bench: Bench, folder: Path) -> Measured:
        """As `LearningRow.measure`."""
        found = bench.measure(self.row, folder)
        if self.check is None:
            return found
        return replace(found, notes=", ".join(filter(None, (found.notes, self.check(folder / "model.gguf")))))


@dataclass(frozen=True)
class Claim:
    """What is to be shown.

    Attributes:
        text: in words.
        bar: what is asked for.
        found: what was measured.
        holds: whether that is enough; None where it is only to be printed.
    """

    text: str
    bar: str
    found: str
    holds: bool | None = None


class Part(Protocol):
    """A module `learning_NAME`."""

    def rows(self, plan: Plan) -> Sequence[LearningRow]:
        """The lines of the part, cheapest first."""
        ...

    def claims(self, found: Mapping[str, Measured]) -> list[Claim]:
        """What the lines that were measured (label → figures) show; those that are absent are left out."""
        ...


def part_names() -> list[str]:
    """Every part that has a file beside this one."""
    own = Path(__file__).stem.removeprefix(PREFIX)
    found = (path.stem.removeprefix(PREFIX) for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))
    return sorted(name for name in found if name != own)


def open_part(name: str) -> Part:
    """The part of a name that `part_names` gives."""
    part: Part = importlib.import_module(PREFIX + name)  # type: ignore[assignment]  # a module is its own protocol
    return part
