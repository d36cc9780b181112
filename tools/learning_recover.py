"""Part of `bench_learning`: what recovery adapters give back of Q3_K_M and Q2_K on text that they never saw.

Each type stands alone, then with an adapter at the published rate and at edgepack's own; what the same bytes give as a
larger type is in the row's notes.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench_passes import Measured, Row
from learning_parts import Claim, PassRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench_passes import Bench
    from learning_parts import LearningRow, Plan

TYPES = ("q3_k_m", "q2_k")
RATES = ("8e-7", "auto")


def edgepack_json(arguments: Sequence[object], threads: int) -> tuple[dict[str, Any], float, int]:
    """What a command prints with --json, its processor seconds, and the peak memory of the largest child so far."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "edgepack", *map(str, arguments), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(found.stdout), seconds, after.ru_maxrss * 1024


@dataclass(frozen=True)
class RecoveryRow:
    """One type with an adapter.

    Attributes:
        type: of the file.
        rate: as `--rate` takes it.
        plan: of the run.
    """

    type: str
    rate: str
    plan: Plan

    @property
    def label(self) -> str:
        """Names the row."""
        return f"{self.type} + recovery, rate {self.rate}"

    @property
    def sequences(self) -> int:
        """That are learnt from."""
        return self.plan.steps * self.plan.batch

    def measure(self, bench: Bench, folder: Path) -> Measured:
        """Export, train, score."""
        plan, file, adapter = self.plan, folder / "model.gguf", folder / "model-lora.gguf"
        edgepack_json(["export", plan.model, "--target", f"gguf-{self.type}", "-o", file], plan.threads)
        began = time.monotonic()
        told, seconds, peak = edgepack_json(
            ["recover", file, "--reference", plan.model, "--text", bench.settings["text"], "--rate", self.rate,
             "--steps", plan.steps, "--batch", plan.batch, "--ctx", plan.length, "--threads", plan.threads,
             "--hardest", max(plan.batch, self.sequences // 3), "-o", adapter],
            plan.threads,
        )  # fmt: skip
        found = bench.score(file, (adapter,)).statistics
        larger = told["larger"]
        against = "" if larger is None else (
            f"{'wins over' if told['wins'] else 'loses to'} {larger['target']} of {larger['bytes']:,} B, equal-bytes KL"
            f" {larger['equal_bytes_kl']:.5f}"
        )  # fmt: skip
        size = file.stat().st_size + adapter.stat().st_size
        notes = f"best step {told['best_step']} of {told['steps']}, {time.monotonic() - began:.0f} s, {against}"
        perplexity = 2.718281828459045 ** float(found.candidate_loss.mean)
        return Measured(
            self.label, size, 0, perplexity, float(found.divergence.mean), float(found.agreement.mean), seconds, peak,
            notes,
        )  # fmt: skip


def rows(plan: Plan) -> Sequence[LearningRow]:
    """Each type alone, and with adapters."""
    found: list[LearningRow] = []
    for kind in TYPES:
        found.append(PassRow(Row(kind, kind, (), False)))
        found += [RecoveryRow(kind, rate, plan) for rate in RATES]
    return found


def claims(found: Mapping[str, Measured]) -> list[Claim]:
    """The share of the lost divergence that comes back."""
    told = []
    for kind in TYPES:
        for rate in RATES:
            label = f"{kind} + recovery, rate {rate}"
            if kind in found and label in found:
                share = 1 - found[label].mean_kl / found[kind].mean_kl
                told.append(Claim(f"recovery of {kind}, rate {rate}", "KL regained on unseen text", f"{share:.1%}"))
    return told
