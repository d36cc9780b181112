"""What a cache costs is what llama.cpp answers with it, chunk by chunk, and an interrupted measurement goes on."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny_models import Shape, write_random

from edgepack.edge.fidelity.agreement import log_softmax
from edgepack.edge.fidelity.scorers.scorer import Chunk, Chunking
from edgepack.edge.kv.measure import Caches, KeptChunks, measure_caches
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("f16", "q8_0", "q8_0/q4_0", "q4_0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Shape(head_width=32, heads=2, kv_heads=1, width=64)
    return write_random(tmp_path_factory.mktemp("kv") / "m.gguf", made)


@pytest.fixture(scope="module")
def caches(model: Path) -> Iterator[Caches]:
    with closing(Caches(model, 32, threads=1)) as opened:
        yield opened


@pytest.fixture(scope="module")
def chunks(caches: Caches) -> list[Chunk]:
    tokens = caches.tokenize("A quick brown fox jumps over the lazy dog. " * 4)
    return list(Chunking(32, max_chunks=3).chunks(tokens, caches.bos))


def test_a_cost_is_the_divergence_of_answers_with_that_cache_from_those_with_f16(
    model: Path, caches: Caches, chunks: list[Chunk]
) -> None:
    costs = {cost.name: cost for cost in measure_caches(caches, ["q8_0/q4_0"], chunks)}
    assert list(costs) == ["f16", "q8_0/q4_0"]
    found = []
    for chunk in chunks:
        rows = []
        for k, v in (("f16", "f16"), ("q8_0", "q4_0")):
            options = RuntimeOptions(n_ctx=32, n_batch=32, threads=1, kv_type_k=k, kv_type_v=v, flash_attention="on")
            with LoadedModel(model, options) as alone:
                rows.append(log_softmax(alone.logits(chunk.tokens)[chunk.first : -1]))
        found.append((np.exp(rows[0]) * (rows[0] - rows[1])).sum(1))
    assert costs["q8_0/q4_0"].kl == pytest.approx(np.concatenate(found).mean(), rel=1e-6)
    assert costs["q8_0/q4_0"].kl_high > costs["q8_0/q4_0"].kl > 0


def test_the_baseline_costs_nothing_and_finer_types_cost_less(caches: Caches, chunks: list[Chunk]) -> None:
    costs = {cost.name: cost for cost in measure_caches(caches, NAMES, chunks)}
    assert (costs["f16"].kl, costs["f16"].kl_high, costs["f16"].agreement) == (0.0, 0.0, 1.0)
    assert costs["q8_0"].kl < costs["q4_0"].kl


def test_contexts_on_shared_weights_leave_each_other_alone(caches: Caches, chunks: list[Chunk]) -> None:
    before = caches.logits("f16", chunks[0])
    caches.logits("q4_0", chunks[1])
    np.testing.assert_array_equal(caches.logits("f16", chunks[0]), before)


class Counting:
    """Caches that count what is asked of them, and may fail."""

    def __init__(self, caches: Caches, fail_at: int = 10**9) -> None:
        self._caches, self.asked, self._fail_at = caches, 0, fail_at

    def logits(self, name: str, chunk: Chunk) -> Any:
        self.asked += 1
        if self.asked == self._fail_at:
            raise KeyboardInterrupt
        return self._caches.logits(name, chunk)


def test_an_interrupted_measurement_goes_on_and_gives_the_same_figures(
    caches: Caches, chunks: list[Chunk], tmp_path: Path
) -> None:
    whole = measure_caches(caches, NAMES, chunks)
    kept = KeptChunks(tmp_path / "work" / "kept.jsonl", {"text": "a"})
    failing: Any = Counting(caches, fail_at=len(NAMES) + 2)
    with pytest.raises(KeyboardInterrupt):
        measure_caches(failing, NAMES, chunks, kept=kept)
    with kept._path.open("a") as stream:
        stream.write('\n{"chunk": 1, "caches": {"f1')  # as a kill leaves a line
    counting: Any = Counting(caches)
    assert measure_caches(counting, NAMES, chunks, kept=kept) == whole
    assert counting.asked == len(NAMES) * (len(chunks) - 1)
    again: Any = Counting(caches)
    assert measure_caches(again, NAMES, chunks, kept=kept) == whole
    assert again.asked == 0


def test_another_measurement_takes_nothing_of_an_interrupted_one(
    caches: Caches, chunks: list[Chunk], tmp_path: Path
) -> None:
    path = tmp_path / "kept.jsonl"
    measure_caches(caches, NAMES[:2], chunks[:1], kept=KeptChunks(path, {"text": "a"}))
    assert KeptChunks(path, {"text": "a"}).read(NAMES[:2]).keys() == {0}
    assert KeptChunks(path, {"text": "a"}).read(NAMES) == {}  # more caches than were measured
    assert KeptChunks(path, {"text": "b"}).read(NAMES[:2]) == {}
    assert not path.exists()


def test_a_kept_file_of_anything_else_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    head = json.dumps({"key": {}})
    for content in (
        "",
        "x",
        f"{head}\n[]",
        f"{head}\n{{}}",
        f'{head}\n{{"chunk": 0, "caches": {{"f16": {{"kl": 1}}}}}}',
    ):
        path.write_text(content)
        assert KeptChunks(path, {}).read(["f16"]) == {}
    path.write_bytes(b"\xff\xfe")
    assert KeptChunks(path, {}).read(["f16"]) == {}
