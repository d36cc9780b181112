"""A cluster's file is one machine's, byte for byte: for every number of workers, order of answers and loss."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from shaky_backend import ShakyBackend
from tiny_llama import write_tiny

import edgepack
from edgepack.errors import ResourceError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.chunks import Chunk
from edgepack.gguf.types import GGMLType
from edgepack.model import OverriddenTensors, read_tensor
from edgepack.pipeline.cluster import opening
from edgepack.pipeline.cluster.board import Board
from edgepack.pipeline.cluster.crew import ClusterCrew
from edgepack.pipeline.frontier.catalogue import IMPORTANCE, catalogue
from edgepack.pipeline.frontier.making import FileMaker
from edgepack.pipeline.frontier.request import StudyRequest
from edgepack.quant.calibration.collect import collect
from edgepack.quant.calibration.curvature import measure
from edgepack.quant.passes.gptq import GptqSettings, apply_gptq
from edgepack.quant.passes.recipe import inline_recipe
from edgepack.quant.passes.registry import find_pass
from edgepack.quant.passes.run import PassRun

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.model import Checkpoint

SHAKY = ((1, 0.0, 0.0), (2, 0.0, 0.0), (4, 0.1, 0.1))  # workers, losses, shortages of memory


def crew_of(backend: ShakyBackend) -> ClusterCrew:
    return ClusterCrew(backend, Board(lambda _line: None))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, ShakyBackend]:
    """What `--cluster` connects to."""
    held: dict[str, ShakyBackend] = {}

    @contextmanager
    def opened(_request: object) -> Iterator[ClusterCrew]:
        yield crew_of(held["backend"])

    monkeypatch.setattr(opening, "opened_crew", opened)
    return held


def exported(model: Path, folder: Path, **options: Any) -> bytes:
    folder.mkdir()
    result = edgepack.export(model, output=folder / "m.gguf", **options)
    left = [path.name for path in folder.iterdir()]
    assert left == ["m.gguf"], "nothing is left beside the file"
    return result.output.read_bytes()


def same(model: Path, tmp_path: Path, cluster: dict[str, ShakyBackend], **options: Any) -> int:
    """Assert that every cluster makes the bytes of this process; the number of answers that were lost."""
    alone, lost = exported(model, tmp_path / "alone", **options), 0
    for workers, losses, shortages in SHAKY:
        backend = cluster["backend"] = ShakyBackend(workers, 1, losses, shortages)
        assert exported(model, tmp_path / f"{workers}", cluster="auto", **options) == alone
        assert backend.asked
        lost += backend.lost
    return lost


def test_q4km(books: Path, tmp_path: Path, cluster: dict[str, ShakyBackend]) -> None:
    same(books, tmp_path, cluster, target="gguf-q4km")


def test_a_full_disk_of_a_node_ends_in_one_line_with_its_name_and_leaves_no_file(
    books: Path, tmp_path: Path, cluster: dict[str, ShakyBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, asked = Chunk.encode, []

    def full(self: Chunk) -> Any:
        asked.append(1)
        if len(asked) == 3:
            raise OSError(28, "No space left on device", "/scratch/spilled")
        return encode(self)

    monkeypatch.setenv("EDGEPACK_NODE_NAME", "node-7")
    monkeypatch.setattr(Chunk, "encode", full)
    cluster["backend"] = ShakyBackend(2, 1)
    with pytest.raises(ResourceError, match="cluster: node 'node-7': No space left on device: '/scratch/spilled'"):
        edgepack.export(books, "gguf-q8", output=tmp_path / "m.gguf", cluster="auto")
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")], "nothing under the final name"


def test_a_coded_variant(books: Path, tmp_path: Path, cluster: dict[str, ShakyBackend]) -> None:
    same(books, tmp_path, cluster, target="edge-nf4")


def test_an_importance_matrix(stories: Path, tmp_path: Path, cluster: dict[str, ShakyBackend]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little cat. " * 200)

    def collected(name: str, **options: Any) -> bytes:
        edgepack.imatrix(stories, text, tmp_path / name, ctx=64, threads=1, **options)
        return (tmp_path / name).read_bytes()

    alone = collected("alone.gguf")
    backend = cluster["backend"] = ShakyBackend(2, 1, 0.1)
    assert collected("crew.gguf", cluster="auto") == alone
    assert backend.asked


def test_a_frontier_s_exports_are_its_cluster_s(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    study = StudyRequest(tmp_path / "model", text, (text,), tmp_path / "out", cluster="HEAD:6379")
    maker = FileMaker(study, tmp_path)
    assert all(maker.request(spec, None).cluster == "HEAD:6379" for spec in catalogue() if spec.needs != IMPORTANCE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("model"), num_hidden_layers=3, intermediate_size=64))


TOKENS = np.random.Generator(np.random.PCG64(1)).integers(0, 40, (18, 16)).astype(np.int64)


def test_statistics(tiny: Checkpoint) -> None:
    alone = collect(tiny, TOKENS, with_hessian=True, batch=4).statistics
    for workers, losses, _ in SHAKY:
        crew = crew_of(ShakyBackend(workers, 1, losses / 4))
        found = collect(tiny, TOKENS, with_hessian=True, batch=4, crew=crew).statistics
        assert found.keys() == alone.keys()
        for name, own in alone.items():
            for one, other in ((own.mean_abs, found[name].mean_abs), (own.mean_square, found[name].mean_square)):
                np.testing.assert_array_equal(one, other)
            assert own.hessian is not None
            np.testing.assert_array_equal(own.hessian, found[name].hessian)


def test_curvature(tiny: Checkpoint, tmp_path: Path) -> None:
    def taken(folder: str, crew: ClusterCrew | None) -> dict[str, Any]:
        parts = measure(tiny, TOKENS, tmp_path / folder, batch=4, crew=crew)
        found = {name: curvature for part in parts for name, curvature in part.items()}
        assert not list((tmp_path / folder).iterdir()), "nothing is left"
        return found

    alone = taken("alone", None)
    for workers, losses, _ in SHAKY:
        found = taken(f"{workers}", crew_of(ShakyBackend(workers, 1, losses / 4)))
        assert list(found) == list(alone)
        for name, own in alone.items():
            assert torch.equal(own.inputs, found[name].inputs)
            assert torch.equal(own.outputs, found[name].outputs)


def test_an_interrupted_curvature_goes_on_with_another_crew(tiny: Checkpoint, tmp_path: Path) -> None:
    alone = [dict(part) for part in measure(tiny, TOKENS, tmp_path / "alone", batch=4)]
    first = measure(tiny, TOKENS, tmp_path / "again", batch=4, crew=crew_of(ShakyBackend(2)))
    next(first)
    next(first)
    first.close()  # type: ignore[attr-defined]  # a generator
    rest = list(measure(tiny, TOKENS, tmp_path / "again", batch=4, crew=crew_of(ShakyBackend(4, 5))))
    assert [list(part) for part in rest] == [list(part) for part in alone[1:]], "the part yielded last comes again"
    for own, found in zip(alone[1:], rest, strict=True):
        assert all(torch.equal(own[name].outputs, found[name].outputs) for name in own)


def with_outliers(checkpoint: Checkpoint) -> Checkpoint:
    """Channels of very different sizes, so that scales help whatever tokens are drawn."""
    name = "model.embed_tokens.weight"
    array = read_tensor(checkpoint.tensors, name)
    array[:, [1, 9, 30]] *= 30
    return replace(checkpoint, tensors=OverriddenTensors(checkpoint.tensors, {name: array}))


@pytest.mark.parametrize(
    "named",
    [
        "awq",
        "prune:method=wanda,sparsity=0.5",
        "prune:method=sparsegpt,pattern=2:4",
        "lowrank:method=whitened,rank=8",
        "smooth:steps=20,tokens=64",
    ],
)
def test_passes_that_look_at_activations(named: str, tiny: Checkpoint, tmp_path: Path) -> None:
    """Sequences are split over workers, for `smooth` blocks; what is decided of all blocks is decided here."""
    (step,) = inline_recipe((named,), {}).passes
    model = with_outliers(tiny) if step.name == "smooth" else tiny
    kinds = {name: GGMLType.Q4_0 for name, spec in tiny.tensors.specs.items() if len(spec.shape) == 2}

    def changed(folder: str, crew: ClusterCrew | None) -> tuple[Any, list[Any]]:
        run = PassRun(tmp_path / folder, TOKENS, kinds, with_importance=True, batch=4, crew=crew)
        outcome = find_pass(step.name).run(model, step.settings, run)
        tensors = outcome.checkpoint.tensors
        return outcome.figures, [tensors.read_rows(name, 0, spec.rows) for name, spec in tensors.specs.items()]

    figures, weights = changed("alone", None)
    assert figures.get("folds", 1), "something was changed"
    for workers, losses, _ in SHAKY:
        backend = ShakyBackend(workers, 1, losses)
        found, others = changed(f"{workers}", crew_of(backend))
        assert backend.asked
        assert found == figures
        assert all(np.array_equal(one, other) for one, other in zip(weights, others, strict=True))
        assert not list((tmp_path / f"{workers}").glob("smooth-inputs/*")), "activations and gradients go"


def test_gptq(tiny: Checkpoint, tmp_path: Path) -> None:
    kinds = {name: GGMLType.Q4_0 for name, spec in tiny.tensors.specs.items() if len(spec.shape) == 2}

    def rounded(folder: str, crew: ClusterCrew | None) -> tuple[Any, dict[str, Any]]:
        run = PassRun(tmp_path / folder, TOKENS, kinds, with_importance=True, batch=4, crew=crew)
        outcome = apply_gptq(tiny, GptqSettings(), run)
        tensors = outcome.checkpoint.tensors
        weights = {name: tensors.read_rows(name, 0, tensors.specs[name].rows) for name in kinds}
        return (outcome.figures, outcome.notes, outcome.coded), weights

    alone, weights = rounded("alone", None)
    for workers, losses, _ in SHAKY:
        found, others = rounded(f"{workers}", crew_of(ShakyBackend(workers, 1, losses)))
        assert found[:2] == alone[:2]
        assert all(np.array_equal(weights[name], others[name]) for name in kinds)
