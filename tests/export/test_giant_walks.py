"""What is planned for GLM-4.7 on clusters is of its own matrices, and waits for what docs/cluster.md says waits."""

from __future__ import annotations

from math import prod

import pytest
from giant_cluster import HEADINGS, Machines
from giant_rates import Matrix, Rates, RowRate, blocks_of
from giant_walks import WORKS, best_threads, node_bytes, relay_seconds, walk_rows
from plan_giant import GLM_4_7, checkpoint_shapes

BLOCKS = blocks_of(GLM_4_7)
RATES = Rates(1e-10, 1e-10, dict.fromkeys(("plain", "gptq", "refine", "wire"), RowRate(1e-7, 1e-11)))
NODES = (1, 4, 16, 64)


def machines(nodes: int) -> Machines:
    return Machines(nodes, 64, 1.25e9, 5e9)


def test_the_blocks_hold_the_checkpoint_s_matrices_and_no_other() -> None:
    layers = GLM_4_7["num_hidden_layers"]
    own = [
        shape
        for name, shape in checkpoint_shapes(GLM_4_7).items()
        if name.startswith("model.layers.") and int(name.split(".")[2]) < layers and len(shape) == 2
    ]
    assert len(BLOCKS) == layers
    assert sum(block.weights for block in BLOCKS) == sum(map(prod, own))


def test_a_token_passes_the_experts_that_are_chosen() -> None:
    """GLM-4.7 has 32 B active parameters; of what is outside the blocks nothing is counted."""
    assert 30e9 < sum(block.multiplies for block in BLOCKS) < 33e9


def test_matrices_that_read_one_input_share_its_moments() -> None:
    dense = BLOCKS[0]
    assert [each.columns for each in dense.inputs()] == [5120, 12288, 5120, 12288]
    assert dense.moment_bytes() == 4 * sum(each.columns**2 for each in dense.inputs())
    assert BLOCKS[-1].moment_bytes() > 160 * 4 * 5120**2 > BLOCKS[-1].moment_bytes(stacks=False)


def test_rows_take_longer_the_longer_they_are() -> None:
    rate = RowRate(1.0, 0.5)
    assert rate.seconds(Matrix(2, 4, "x", count=3)) == 24 * (1 + 2)


@pytest.mark.parametrize("runners", [1, 2, 4, 8, 100])
def test_a_relay_is_no_faster_than_its_runners_nor_than_its_longest_chain(runners: int) -> None:
    taken = relay_seconds([8.0] * 6, 4, runners)
    assert taken == max(48 / runners, 8 * (6 + 4 - 1) / 4)
    assert relay_seconds([8.0], 4, runners) == 8


@pytest.mark.parametrize("work", WORKS)
def test_more_nodes_compute_no_longer_and_one_alone_sends_nothing(work: str) -> None:
    rows = walk_rows([work], GLM_4_7, RATES, [machines(nodes) for nodes in NODES], 1.5e12)
    assert [len(row) for row in rows] == [len(HEADINGS)] * len(NODES)
    computing = [float(row[4].removesuffix(" h")) for row in rows]
    assert computing == sorted(computing, reverse=True)
    assert all(float(row[2]) >= max(float(cell.removesuffix(" h")) for cell in row[4:7]) - 0.01 for row in rows)
    assert rows[0][8] == "0 GB"
    assert rows[-1][8] != "0 GB"


def test_what_more_nodes_cannot_shorten_is_told() -> None:
    (row,) = walk_rows(["refine"], GLM_4_7, RATES, [machines(64)], 1.5e12)
    assert row[3] == "one piece after another", "a stack of experts is rounded by one worker"


@pytest.mark.parametrize("work", WORKS)
def test_threads_are_those_with_which_a_node_s_memory_suffices(work: str) -> None:
    large, small = (best_threads(work, BLOCKS, RATES, machines(4), memory) for memory in (1.5e12, 2e11))
    assert node_bytes(work, BLOCKS, large) <= 1.5e12
    assert small.threads >= large.threads
