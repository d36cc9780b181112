"""The synthetic source says the same whether it lies on disk or is made on demand."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import pytest
from synthetic_checkpoint import LlamaShape, parse_parameters, synthetic_llama, write_llama

from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import plan_export
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

TINY = LlamaShape(hidden=64, layers=2, feed_forward=96, heads=4, kv_heads=2, vocabulary=4096)


@pytest.mark.parametrize("parameters", [125_000_000, 10**9, 4 * 10**9, 7 * 10**10])
def test_shape_is_within_five_percent_of_the_size_asked_for(parameters: int) -> None:
    specs = LlamaShape.of_size(parameters).specs()
    assert sum(prod(spec.shape) for spec in specs.values()) == pytest.approx(parameters, rel=0.05)


def test_written_weights_equal_those_made_on_demand(tmp_path: Path) -> None:
    written = open_checkpoint(write_llama(tmp_path / "tiny", TINY)).tensors
    made = synthetic_llama(TINY).tensors
    assert written.specs == made.specs
    for name, spec in made.specs.items():
        whole = made.read_rows(name, 0, spec.rows)
        assert np.array_equal(written.read_rows(name, 0, spec.rows), whole)
        middle = slice(spec.rows // 3, spec.rows // 3 + 1)
        assert np.array_equal(made.read_rows(name, middle.start, middle.stop), whole[middle])


def test_tensors_longer_than_the_pool_are_read_whole() -> None:
    made = synthetic_llama(LlamaShape(512, 1, 512, 8, 2, vocabulary=20000)).tensors
    rows = made.read_rows("model.embed_tokens.weight", 0, 20000)
    assert rows.shape == (20000, 512)
    assert rows.std() == pytest.approx(0.02, rel=0.01)


def test_a_model_of_70_billion_parameters_is_planned_without_disk() -> None:
    plan = plan_export(map_checkpoint(synthetic_llama(LlamaShape.of_size(7 * 10**10))), find_target("q5_k_m"))
    assert 45 * 10**9 < plan.total_bytes < 55 * 10**9


def test_sizes_are_read_with_their_unit() -> None:
    assert [parse_parameters(text) for text in ("1b", "350M", "12345")] == [10**9, 350 * 10**6, 12345]
