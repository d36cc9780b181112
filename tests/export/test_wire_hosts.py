"""Hosts by a budget of memory: what the allocation promises, and files that keep to two budgets at once."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from wire_models import write_small_llama  # noqa: E402

from edgepack.errors import UsageError  # noqa: E402
from edgepack.export.checkpoint import open_checkpoint  # noqa: E402
from edgepack.export.wire.fold_choice import STRENGTHS, FoldSample, choose_strength  # noqa: E402
from edgepack.export.wire.hosts import Offer, allocate, kinds_for  # noqa: E402
from edgepack.export.wire.plan import WireSettings  # noqa: E402
from edgepack.gguf.reader import read_header  # noqa: E402
from edgepack.gguf.types import GGMLType  # noqa: E402
from edgepack.packaging.restore.unpack import unpack_archive  # noqa: E402
from edgepack.pipeline.accepted import check_request  # noqa: E402
from edgepack.pipeline.goals.scalar import scale_to_size  # noqa: E402
from edgepack.pipeline.makers.wire_run import Calibration, WireRun  # noqa: E402
from edgepack.pipeline.request import ExportRequest  # noqa: E402
from edgepack.quant.codecs.ggml.host_grids import HOST_OF_TYPE, HOSTS  # noqa: E402
from edgepack.quant.wire.factor import SweepFactor  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

KINDS = (GGMLType.Q4_0, GGMLType.Q5_0, GGMLType.Q8_0)


def offers_of(sizes: list[int], costs: list[float]) -> list[Offer]:
    return [Offer(kind, size, cost) for kind, size, cost in zip(KINDS, sizes, costs, strict=True)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), share=st.floats(0, 1))
def test_no_allocation_is_over_and_none_is_far_from_the_best(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    groups = []
    for _ in range(5):
        weights = int(random.integers(1, 20))
        costs = weights * np.exp(random.normal()) * np.array([64.0, 16.0, 1.0])
        groups.append(offers_of([18 * weights, 22 * weights, 34 * weights], costs.tolist()))
    least, most = (sum(group[end].bytes for group in groups) for end in (0, -1))
    room = int(least + share * (most - least))
    found = allocate(groups, room)
    assert sum(offer.bytes for offer in found) <= room
    best = min(
        sum(offer.cost for offer in choice)
        for choice in product(*groups)
        if sum(offer.bytes for offer in choice) <= room
    )
    worst = sum(group[0].cost for group in groups)
    assert sum(offer.cost for offer in found) <= best + 0.5 * (worst - best) + 1e-9


def test_room_for_everything_gives_the_best_of_every_group_and_too_little_is_refused() -> None:
    groups = [offers_of([18, 22, 34], [4.0, 2.0, 1.0]), offers_of([18, 22, 34], [4.0, 1.0, 2.0])]
    assert [offer.kind for offer in allocate(groups, 1000)] == [GGMLType.Q8_0, GGMLType.Q5_0]
    with pytest.raises(UsageError, match="at least 36 bytes of matrices, got 35"):
        allocate(groups, 35)


def test_every_width_has_the_hosts_that_hold_its_rows() -> None:
    for width in (32, 96, 256, 576, 1536):
        assert all(width % kind.block_size == 0 and kind in HOST_OF_TYPE for kind in kinds_for(width))
        assert GGMLType.Q8_0 in kinds_for(width)
    assert kinds_for(48) == ()


def test_inputs_are_evened_where_activations_decide_and_left_where_weights_do() -> None:
    random = np.random.default_rng(0)
    squares = np.exp(random.normal(0, 2, 64))
    weights = torch.from_numpy(random.normal(size=(16, 64))).float()
    sample = FoldSample(weights, torch.ones(16).double(), 1 / np.sqrt(squares), squares)
    host = HOSTS["q8"]
    assert sample.activations(0, host, 1.0) < sample.activations(1, host, 1.0)
    assert STRENGTHS[choose_strength(sample, host, 1e-6, lambda _scales: 0.0)] == (0.0, 1.0)

    def unevenness(scales: np.ndarray) -> float:
        columns = (weights.numpy() / scales).std(0)
        return float(1e9 * np.log(columns).std())

    assert choose_strength(sample, host, 1.0, unevenness) > 0
    for strength in range(len(STRENGTHS)):
        assert np.log(sample.scales(strength)).mean() == pytest.approx(0, abs=1e-9)


def test_a_folded_factor_is_that_of_folded_inputs() -> None:
    from edgepack.quant.feedback import feedback_factor

    inputs = torch.randn(400, 96, generator=torch.Generator().manual_seed(1))
    factor = feedback_factor(inputs.T @ inputs / 400)
    folds = np.exp(np.random.default_rng(2).normal(0, 1, 96))
    direct, later = SweepFactor.of(factor, folds), SweepFactor.of(factor).folded(folds)
    np.testing.assert_allclose(later.diagonal, direct.diagonal, rtol=1e-6)
    np.testing.assert_allclose(later.dense().numpy(), direct.dense().numpy(), rtol=2.0**-10, atol=1e-9)
    np.testing.assert_allclose(later.noise, direct.noise, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("hosts")
    model = write_small_llama(folder / "small", intermediate_size=256)  # rows of 64 columns, and of whole blocks of 256
    tokens = np.random.default_rng(0).integers(0, 4000, (6, 64))
    settings = WireSettings(HOSTS["q8"])
    with WireRun(
        open_checkpoint(model), folder / "out.gguf", settings, Calibration(tokens, "0" * 64), threads=2
    ) as run:
        yield run


def test_two_budgets_are_kept_at_once_and_the_archive_gives_the_file_back(run: WireRun, tmp_path: Path) -> None:
    whole = run.attempt(run.scale_of(1e-2))
    memory = int(0.8 * whole.gguf_bytes)
    run.use(WireSettings(HOSTS["q8"], memory=memory))
    free = run.attempt(run.scale_of(1e-2))
    assert free.gguf_bytes <= memory
    assert free.gguf_bytes > 0.98 * memory
    kinds = {tensor.type for tensor in read_header(run.gguf).tensors} & set(HOST_OF_TYPE)
    assert len(kinds) > 1
    assert read_header(run.gguf).metadata["edgepack.wire.host"].value == "mixed"
    wanted = int(0.97 * free.archive_bytes)
    run.trials.clear()
    trial = scale_to_size(run, wanted)
    assert wanted * 0.995 <= trial.archive_bytes <= wanted
    assert trial.gguf_bytes <= memory
    restored = unpack_archive(run.archive, tmp_path / "restored.gguf").output
    assert restored.read_bytes() == run.gguf.read_bytes()


def test_a_memory_below_the_least_names_the_least(run: WireRun) -> None:
    run.use(WireSettings(HOSTS["q8"], memory=1000))
    with pytest.raises(UsageError, match=r"--max-memory: expected at least \d+ bytes, .* got 1000"):
        run.attempt(run.scale_of(1e-2))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"max_download": "1MB", "max_size": "1MB"}, "both limit the archive"),
        ({"max_download": "1MB", "bits": 4.0}, "exactly one of --bits, --max-size, --max-download"),
        ({"max_memory": "1MB"}, "exactly one of"),
        ({"max_download": "1MB", "max_memory": "2MB", "host_type": "q8"}, "every matrix gets a host of its own"),
        ({"max_download": "1MB", "max_memory": "0"}, "--max-memory: expected more than 0"),
    ],
)
def test_budgets_that_contradict_each_other_are_refused(values: dict[str, object], text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=text):
        check_request(ExportRequest(tmp_path, "wire", **values))
