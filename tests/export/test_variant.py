"""A variant's plan is exact before a weight is coded, and a run that was interrupted gives the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.edge.install.native import plan_native
from edgepack.export.coded import write as variant_write
from edgepack.export.coded.plan import VariantPlan, parse_tensor_codecs, plan_variant, settle_plan
from edgepack.export.coded.write import write_variant
from edgepack.export.mapped import MappedModel
from edgepack.export.rows import ArrayRows
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import string
from edgepack.quant.codecs.codec import Statistics
from edgepack.quant.codecs.targets import TARGETS, find_edge_target
from edgepack.quant.types.mixtures import ModelFacts

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_down.weight", "blk.0.ffn_up_exps.weight")
SHAPES = ((24, 64), (5, 64), (7, 43), (3, 9, 32))
# The short register keeps searches small; nothing else of a layout depends on it.
SHORT = {"seedlm4": "seedlm4:register_bits=8", "seedlm3": "seedlm3:register_bits=8"}


def ragged(kind: str = "normal") -> MappedModel:
    """Matrices whose rows are no multiple of anything, a stack, and a vector that stays plain."""
    generator = np.random.default_rng(3)
    tensors = {"blk.0.attn_norm.weight": ArrayRows(generator.standard_normal(64).astype(np.float32))}
    for name, shape in zip(NAMES, SHAPES, strict=True):
        weight = generator.standard_normal(shape).astype(np.float32) * np.float32(0.02)
        if kind == "zero":
            weight[:] = 0
        if kind == "outlier":
            weight.reshape(-1)[5] = -1e4
        tensors[name] = ArrayRows(weight)
    metadata = {"general.architecture": string("llama"), "general.name": string("ragged")}
    return MappedModel("ragged", metadata, tensors, ModelFacts("llama", 1, 4, 4))


class Huge(ArrayRows):
    """A matrix of 10⁹ weights whose plan is asked for, and no weight."""

    def __init__(self) -> None:
        super().__init__(np.broadcast_to(np.float32(0), (1 << 15, 1 << 15)))

    def read(self, start: int, stop: int) -> np.ndarray:
        raise AssertionError("a plan reads nothing")


def test_what_a_models_size_decides_is_in_the_plan_and_said_once() -> None:
    model = ragged()
    large = MappedModel("large", model.metadata, {**model.tensors, "blk.0.ffn_gate.weight": Huge()}, model.facts)
    plan = plan_variant(large, find_edge_target("seedlm4"), parse_tensor_codecs(["attn_k=vptq2", "attn_q=seedlm3"]))
    searches = {tensor.name: tensor.target.codecs[0] for tensor in plan.tensors if tensor.target}
    assert [getattr(searches[f"blk.0.{name}.weight"], "search", None) for name in ("ffn_gate", "ffn_down", "attn_q")] == [
        "pruned", "pruned", "exhaustive",
    ]  # fmt: skip
    assert [note[:16] for note in plan.notes] == ["seedlm: 1.1 B we"]
    assert plan_variant(model, find_edge_target("seedlm4")).notes == ()


@pytest.mark.parametrize("kind", ["normal", "zero", "outlier"])
@pytest.mark.parametrize("target", [*TARGETS, "vptq3:outliers=0.1,residual=yes", "nf4+ternary:scale=row+bezier4"])
def test_the_plan_has_every_byte_and_component_of_the_file(target: str, kind: str, tmp_path: Path) -> None:
    plan = settle_plan(plan_variant(ragged(kind), find_edge_target(SHORT.get(target, target))), {})
    size, reports = write_variant(plan, tmp_path / "x.gguf")
    header = read_header(tmp_path / "x.gguf")
    assert plan.total_bytes == size == (tmp_path / "x.gguf").stat().st_size
    planned = [(info.name, info.shape, info.type) for tensor in plan.tensors for info in tensor.components]
    assert planned == [(info.name, info.shape, info.type) for info in header.tensors]
    assert [report.components for report in reports] == [tensor.components for tensor in plan.tensors]
    assert plan_native(tmp_path / "x.gguf").variant.coded


def test_settling_needs_no_weights_where_lengths_do_not_depend_on_them() -> None:
    class Unreadable(ArrayRows):
        def read(self, start: int, stop: int) -> np.ndarray:
            raise AssertionError(f"rows {start} to {stop} were read")

    model = ragged()
    tensors = {name: Unreadable(np.zeros(rows.shape, np.float32)) for name, rows in model.tensors.items()}
    unreadable = MappedModel(model.label, model.metadata, tensors, model.facts)
    assert settle_plan(plan_variant(unreadable, find_edge_target("seedlm4+nf4")), {}).total_bytes
    with pytest.raises(AssertionError, match="were read"):
        settle_plan(plan_variant(unreadable, find_edge_target("vptq3")), {})


def test_dropped_stages_make_the_file_smaller_and_leave_the_header_as_it_was(tmp_path: Path) -> None:
    # Two points far out in a square that an outlier stretches: the middle stage makes everything worse.
    chain = "nf4+trajectory:points=2,classes=1+ternary"
    plan = settle_plan(plan_variant(ragged(), find_edge_target(chain)), {})
    size, reports = write_variant(plan, tmp_path / "x.gguf", skip_harmful=True)
    assert {tuple(stage.kept for stage in report.stages) for report in reports} == {(), (True, False, True)}
    assert size < plan.total_bytes
    assert read_header(tmp_path / "x.gguf").data_start == plan.layout.data_start
    assert len(plan_native(tmp_path / "x.gguf").variant.coded) == len(NAMES)


TOGETHER = "seedlm4:register_bits=8,search=pruned+nf4"


def mixed() -> VariantPlan:
    """Two codecs, a chain, and matrices whose first stages are coded together."""
    return plan_variant(ragged(), find_edge_target(TOGETHER), parse_tensor_codecs(["attn_k=vptq2"]))


def interrupt(path: Path, plan: VariantPlan, after: int, monkeypatch: pytest.MonkeyPatch, *, resume: bool) -> None:
    """Ctrl-C once `after` tensors of this run are noted."""
    added = variant_write.CodingRun.add
    count = [0]

    def add(self, writer, tensor, coded):  # type: ignore[no-untyped-def]
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        added(self, writer, tensor, coded)

    with monkeypatch.context() as patch:
        patch.setattr(variant_write.CodingRun, "add", add)
        with pytest.raises(KeyboardInterrupt):
            write_variant(plan, path, resume=resume)


def coded_in(path: Path, plan: VariantPlan, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tensors that a resumed run still had to code."""
    added, count = variant_write.CodingRun.add, [0]

    def add(self, writer, tensor, coded):  # type: ignore[no-untyped-def]
        count[0] += 1
        added(self, writer, tensor, coded)

    with monkeypatch.context() as patch:
        patch.setattr(variant_write.CodingRun, "add", add)
        write_variant(plan, path, resume=True)
    return count[0]


@pytest.mark.parametrize("stops", [(1,), (3,), (2, 1)])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = tmp_path / "whole.gguf", tmp_path / "x.gguf"
    _, reports = write_variant(mixed(), whole)
    for stop in stops:
        interrupt(path, mixed(), stop, monkeypatch, resume=True)
        assert not path.exists()
    assert coded_in(path, mixed(), monkeypatch) <= len(reports) - max(stops)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["whole.gguf", "x.gguf"]


def test_a_resumed_run_reports_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = write_variant(mixed(), tmp_path / "whole.gguf")
    interrupt(tmp_path / "x.gguf", mixed(), 3, monkeypatch, resume=False)
    _, reports = write_variant(mixed(), tmp_path / "x.gguf", resume=True)
    assert reports == expected


def test_another_plan_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    interrupt(path, mixed(), 3, monkeypatch, resume=False)
    other = plan_variant(ragged("outlier"), find_edge_target("seedlm4:register_bits=8,search=pruned+ternary"))
    assert coded_in(path, other, monkeypatch) == len(other.tensors)


def test_statistics_are_part_of_what_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plan = tmp_path / "x.gguf", plan_variant(ragged(), find_edge_target("ternary:fit=least-squares"))
    known = {NAMES[0]: Statistics(np.linspace(1, 2, 64))}
    interrupt(path, plan, 2, monkeypatch, resume=False)
    write_variant(plan, path, known, resume=True)
    write_variant(plan, tmp_path / "fresh.gguf", known)
    assert path.read_bytes() == (tmp_path / "fresh.gguf").read_bytes()
