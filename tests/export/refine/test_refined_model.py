"""Planning and rounding at budgets: never over, near them, never worse than stock types, the same bytes every time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from wire_models import write_small_llama  # noqa: E402

from edgepack.errors import UsageError  # noqa: E402
from edgepack.export.checkpoint import open_checkpoint  # noqa: E402
from edgepack.export.gguf_file import write_gguf  # noqa: E402
from edgepack.export.plan import PlanOptions, collectable_importance, plan_export  # noqa: E402
from edgepack.export.refine import matrices as refined_matrices  # noqa: E402
from edgepack.export.refine.model import RefinedModel  # noqa: E402
from edgepack.export.refine.reading import read_share  # noqa: E402
from edgepack.export.refine.values import RefineSettings  # noqa: E402
from edgepack.quant.calibration.curvature import measure  # noqa: E402
from edgepack.quant.calibration.curvature_store import CurvatureStore  # noqa: E402
from edgepack.quant.codecs.ggml.codec import dequantize_rows  # noqa: E402
from edgepack.quant.refine.input_rounding import measure_input_rounding  # noqa: E402
from edgepack.quant.types.targets import find_target  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.plan import ExportPlan
    from edgepack.gguf.types import GGMLType

# Rows of whole blocks of 256, of 32 alone, of both kinds, and of neither.
SHAPES = {
    "k": {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3},
    "ragged": {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 4},
    "mixed": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4},
    "odd": {"hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 2},
}


class Fixture:
    """A tiny model with its curvature."""

    def __init__(self, folder: Path, name: str, seed: int = 0) -> None:
        self.folder = folder
        self.checkpoint = open_checkpoint(write_small_llama(folder / "m", vocab_size=4096, **SHAPES[name]))
        tokens = np.random.default_rng(seed).integers(0, 4000, (4, 24))
        self.store = CurvatureStore(folder / "curvature")
        self.store.fill(measure(self.checkpoint, tokens, folder / "entering"))
        self.inputs = measure_input_rounding(self.checkpoint, tokens[:1])

    def model(self, scratch: str = "scratch", threads: int = 2, **settings: bool) -> RefinedModel:
        place = self.folder / scratch
        place.mkdir(exist_ok=True)
        return RefinedModel(
            self.checkpoint, self.store, self.inputs, RefineSettings(**settings), place, threads=threads
        )

    def base(self, target: str) -> ExportPlan:
        mapped = self.model().model
        return plan_export(mapped, find_target(target), PlanOptions(importance=collectable_importance(mapped)))


@pytest.fixture(scope="module", params=SHAPES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return Fixture(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return Fixture(tmp_path_factory.mktemp("mixed"), "mixed", seed=1)


def largest_step(model: RefinedModel, plan: ExportPlan, kinds: dict[str, GGMLType]) -> int:
    """The fewest bytes by which any tensor could still grow into something better; 0 where none could."""
    found = []
    for tensor in model.refinable(plan):
        name, info = tensor.info.name, tensor.info
        known, now = model.prospects([tensor])[name], kinds[name]
        found += [
            replace(info, type=kind).nbytes - replace(info, type=now).nbytes
            for kind in known.weights
            if known.cost(kind) < known.cost(now)
        ]
    return min((step for step in found if step > 0), default=0)


@pytest.mark.parametrize("target", ["gguf-q2k", "gguf-q4km", "gguf-q6k", "gguf-q8"])
def test_a_file_is_never_over_its_budget_and_leaves_no_room_that_would_help(made: Fixture, target: str) -> None:
    model, base = made.model(), made.base(target)
    for share in (1.0, 0.97):
        budget = max(int(base.total_bytes * share), model.least_bytes(base))
        found = model.allocation(base, budget)
        assert found.bytes <= budget
        step = largest_step(model, base, dict(found.kinds))
        assert found.bytes >= 0.998 * budget or budget - found.bytes < step or not step


def test_the_bytes_are_those_of_the_written_file(mixed: Fixture, tmp_path: Path) -> None:
    model, base = mixed.model(), mixed.base("gguf-q4km")
    allocation = model.allocation(base, base.total_bytes)
    plan = model.rounded(base, allocation).plan
    assert write_gguf(plan, tmp_path / "x.gguf") == allocation.bytes == (tmp_path / "x.gguf").stat().st_size


@pytest.mark.parametrize("target", ["gguf-q3km", "gguf-q5km"])
def test_it_is_never_predicted_worse_than_the_stock_types_of_the_same_bytes(made: Fixture, target: str) -> None:
    base = made.base(target)
    stock = made.model(allocation=False).allocation(base, base.total_bytes)
    refined = made.model().allocation(base, base.total_bytes)
    assert stock.bytes == base.total_bytes
    assert refined.bytes <= base.total_bytes
    assert refined.divergence <= stock.divergence


def test_the_loss_of_the_file_is_its_own_curvature_s(mixed: Fixture) -> None:
    model, base = mixed.model(), mixed.base("gguf-q4km")
    made = model.rounded(base, model.allocation(base, base.total_bytes))
    for tensor, before in zip(made.plan.tensors, base.tensors, strict=True):
        name, info = tensor.info.name, tensor.info
        if name not in made.losses:
            continue
        errors = before.rows.read(0, info.rows) - tensor.rows.read(0, info.rows)
        inputs, outputs = model._costs.inputs(info).numpy(), model._costs.outputs(info).numpy()
        loss = 0.5 * float(outputs @ np.einsum("rk,kl,rl->r", errors, inputs, errors))
        assert made.losses[name] == pytest.approx(loss, rel=1e-3), name


def test_a_sample_of_rows_tells_what_all_of_them_cost(mixed: Fixture) -> None:
    model, base = mixed.model(), mixed.base("gguf-q4km")
    allocation = model.allocation(base, base.total_bytes)
    made = model.rounded(base, allocation)
    assert allocation.divergence == pytest.approx(made.loss + made.inputs, rel=0.3)


def test_feedback_loses_less_than_the_plain_encoder(mixed: Fixture) -> None:
    base = mixed.base("gguf-q4km")
    plain, refined = mixed.model("plain", allocation=False, feedback=False), mixed.model(allocation=False)
    losses = [model.rounded(base, model.allocation(base, base.total_bytes)).loss for model in (plain, refined)]
    assert losses[1] < losses[0]


def test_fixed_tensors_keep_their_type(mixed: Fixture) -> None:
    base = mixed.base("gguf-q4km")
    fixed = frozenset(info.name for info in base.infos if "ffn_down" in info.name)
    found = mixed.model().allocation(base, base.total_bytes, fixed)
    assert all(found.kinds[info.name] is info.type for info in base.infos if info.name in fixed)


def test_a_budget_below_the_least_is_refused(mixed: Fixture) -> None:
    model, base = mixed.model(), mixed.base("gguf-q4km")
    with pytest.raises(UsageError, match="size: expected at least"):
        model.allocation(base, model.least_bytes(base) - 1)


def test_a_budget_for_a_divergence_comes_near_it_or_is_the_largest(mixed: Fixture) -> None:
    model, base = mixed.model(), mixed.base("gguf-q4km")
    sizes = []
    for divergence in (1.0, 1e-2, 1e-3, 1e-4):
        budget = model.budget_for(base, divergence)
        found = model.allocation(base, budget)
        sizes.append(budget)
        assert found.divergence <= max(divergence * 1.5, model.allocation(base, 1 << 40).divergence)
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_byte(mixed: Fixture, threads: int) -> None:
    base, files = mixed.base("gguf-q3km"), []
    for name, count in (("threads", 2), (f"threads-{threads}", threads)):
        model = mixed.model(name, threads=count)
        plan = model.rounded(base, model.allocation(base, base.total_bytes)).plan
        path = mixed.folder / f"{name}.gguf"
        write_gguf(plan, path)
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_preferred_speed_reads_no_more_a_token_and_stays_within_the_budget(made: Fixture) -> None:
    base, read = made.base("gguf-q4km"), []
    for prefer_speed in (False, True):
        found = made.model(prefer_speed=prefer_speed).allocation(base, base.total_bytes)
        kinds = {info.name: replace(info, type=found.kinds.get(info.name, info.type)) for info in base.infos}
        read.append(sum(read_share(name, made.model().model) * info.nbytes for name, info in kinds.items()))
        assert found.bytes <= base.total_bytes
    assert read[1] <= read[0]


def test_tables_that_are_looked_up_are_not_read_and_tied_ones_are(mixed: Fixture) -> None:
    model = mixed.model().model
    tied = "output.weight" not in model.tensors
    assert read_share("token_embd.weight", model) == float(tied)
    assert read_share("blk.0.ffn_up.weight", model) == 1.0
    assert read_share("token_embd.weight", replace(model, tensors={**model.tensors, "output.weight": None})) == 0.0


class KilledError(BaseException):
    """Stands for a signal: no handler of errors sees it."""


@pytest.mark.parametrize("blow", [3, 40, 60])
def test_a_run_killed_anywhere_goes_on_with_the_same_bytes(
    mixed: Fixture, blow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, calls = mixed.base("gguf-q4km"), 0
    whole = mixed.model()
    expected = whole.rounded(base, whole.allocation(base, base.total_bytes)).plan
    real = refined_matrices.refine_matrix

    def fused(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == blow:
            raise KilledError
        return real(*arguments, **keywords)

    killed = mixed.model(f"killed-{blow}")
    monkeypatch.setattr(refined_matrices, "refine_matrix", fused)
    try:
        killed.rounded(base, killed.allocation(base, base.total_bytes))
    except KilledError:
        before = calls
    else:
        pytest.fail(f"only {calls} calls")
    monkeypatch.setattr(refined_matrices, "refine_matrix", fused)
    again = mixed.model(f"killed-{blow}")
    found = again.rounded(base, again.allocation(base, base.total_bytes)).plan
    assert calls - before < 100
    for one, other in zip(expected.tensors, found.tensors, strict=True):
        assert one.info == other.info
        assert np.array_equal(one.rows.read(0, one.info.rows), other.rows.read(0, other.info.rows))


def test_rounded_matrices_are_read_back_as_the_type_says(mixed: Fixture) -> None:
    model, base = mixed.model(), mixed.base("gguf-q4km")
    for tensor in model.rounded(base, model.allocation(base, base.total_bytes)).plan.tensors[:4]:
        info = tensor.info
        if info.type.is_quantized:
            blocks = tensor.rows.read_blocks(0, 2)
            assert np.array_equal(dequantize_rows(info.type, blocks, 2, info.shape[-1]), tensor.rows.read(0, 2))
