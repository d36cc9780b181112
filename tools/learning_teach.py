"""Part of `bench_learning`: documents of invented places taught to a model, what it then knows and what it forgot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench_passes import Measured, Row
from invented_canon import write_canon
from learning_parts import Claim, PassRow
from learning_recover import edgepack_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench_passes import Bench
    from learning_parts import LearningRow, Plan

PLACES, QUESTIONS, REPLAY = 24, 80, 32
EPOCHS = (3, 12)  # the default, and what learns facts that stand in one place of the documents
_KNOWS = re.compile(r"terms (?P<before>[\d.]+) → (?P<after>[\d.]+) %.*forgot (?P<forgot>[-\d.]+) %")


@dataclass(frozen=True)
class TeachingRow:
    """The file with a canon adapter.

    Attributes:
        epochs: how often each example is learnt.
        plan: of the run.
    """

    epochs: int
    plan: Plan

    @property
    def label(self) -> str:
        """Names the row."""
        return f"q8_0 + canon, {self.epochs} epochs"

    @property
    def sequences(self) -> int:
        """That are learnt from: passages, sentences and answers of each place, and pieces of other text."""
        return self.epochs * (PLACES * 7 + REPLAY)

    def measure(self, bench: Bench, folder: Path) -> Measured:
        """Export, teach, score on the text that all rows are scored on."""
        plan, file, adapter = self.plan, folder / "model.gguf", folder / "model-lora.gguf"
        write_canon(folder / "canon", PLACES)
        edgepack_json(["export", plan.model, "--target", "gguf-q8_0", "-o", file], plan.threads)
        told, seconds, peak = edgepack_json(
            ["teach", file, "--documents", folder / "canon", "--other", bench.settings["text"], "--ask", QUESTIONS,
             "--epochs", self.epochs, "--replay", REPLAY, "--threads", plan.threads, "-o", adapter],
            plan.threads,
        )  # fmt: skip
        found = bench.score(file, (adapter,)).statistics
        terms, forgot = told["knowledge"]["kinds"]["term"], told["forgetting"]["perplexity_rise"]
        notes = (
            f"terms {100 * terms['before']:.0f} → {100 * terms['after']:.0f} % (chance 25), written"
            f" {100 * terms['written_after']:.0f} %, forgot {100 * forgot:.2f} % of perplexity"
        )
        size = file.stat().st_size + adapter.stat().st_size
        perplexity = 2.718281828459045 ** float(found.candidate_loss.mean)
        return Measured(
            self.label, size, 0, perplexity, float(found.divergence.mean), float(found.agreement.mean), seconds, peak,
            notes,
        )  # fmt: skip


def rows(plan: Plan) -> Sequence[LearningRow]:
    """The file alone, with the default three epochs, and with more."""
    return [PassRow(Row("q8_0", "q8_0", (), False)), *(TeachingRow(epochs, plan) for epochs in EPOCHS)]


def claims(found: Mapping[str, Measured]) -> list[Claim]:
    """Knowledge of facts, and forgetting."""
    told = []
    for label, row in found.items():
        known = _KNOWS.search(row.notes)
        if known is None:
            continue
        after, forgot = float(known["after"]), float(known["forgot"])
        told.append(Claim(f"knowledge, {label}", "> 80 % (chance 25)", f"{known['before']} → {after:g} %", after > 80))
        told.append(Claim(f"forgetting, {label}", "< 2 % of perplexity", f"{forgot:g} %", forgot < 2))
    return told
