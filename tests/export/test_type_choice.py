"""Types and bytes equal llama.cpp's own quantiser's for deep, grouped, tied, expert and odd models.

Both see the same random weights; only names, depth and metadata decide on types, so a tensor has a few rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from references.llama_quantize import llama_quantize, llama_types, tensors_of
from tiny_models import Shape, metadata

from edgepack.errors import CalibrationError, UsageError
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped import MappedModel
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.export.rows import ArrayRows
from edgepack.gguf.types import GGMLType, u32
from edgepack.quant.types.choice import Candidate, Overrides, choose_types
from edgepack.quant.types.mixtures import ModelFacts
from edgepack.quant.types.targets import TARGETS, find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.quant.types.targets import Target

    Importance = dict[str, NDArray[np.float32]]

ROWS = 2  # of every matrix: with one it would be a vector


@dataclass(frozen=True)
class Build:
    """What decides on types.

    Attributes:
        name: of the test.
        columns: of every matrix but `down_columns`.
        fused: q, k and v in one matrix, as phi3 and gptneox have them.
        shared: every layer has a shared expert beside the stack.
    """

    name: str
    layers: int
    heads: int = 4
    kv_heads: int = 4
    architecture: str = "llama"
    experts: int = 0
    tied: bool = False
    columns: int = 256
    down_columns: int = 256
    fused: bool = False
    shared: bool = False

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in an order that is not llama.cpp's."""
        if not self.tied:
            yield "output.weight", (8, self.columns)
        for layer in reversed(range(self.layers)):
            for name, shape in self.layer_shapes():
                yield f"blk.{layer}.{name}", shape
        yield "token_embd.weight", (8, self.columns)
        yield "output_norm.weight", (self.columns,)

    def layer_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """One layer's."""
        matrix, down = (ROWS, self.columns), (ROWS, self.down_columns)
        yield "attn_norm.weight", (self.columns,)
        for name in ["attn_qkv"] if self.fused else ["attn_q", "attn_k", "attn_v"]:
            yield f"{name}.weight", matrix
            yield f"{name}.bias", (ROWS,)
        yield "attn_output.weight", matrix
        if self.experts:
            yield "ffn_gate_inp.weight", (self.experts, self.columns)
            yield from ((f"ffn_{part}_exps.weight", (self.experts, *matrix)) for part in ("gate", "up"))
            yield "ffn_down_exps.weight", (self.experts, *down)
        if self.shared or not self.experts:
            suffix = "_shexp" if self.shared else ""
            yield from ((f"ffn_{part}{suffix}.weight", matrix) for part in ("gate", "up"))
            yield f"ffn_down{suffix}.weight", down

    def model(self) -> MappedModel:
        """Random weights under these names."""
        rng = np.random.default_rng(self.layers)
        tensors = {name: ArrayRows(rng.standard_normal(shape, np.float32)) for name, shape in self.shapes()}
        used = {
            f"{self.architecture}.expert_used_count": u32(2),
            f"{self.architecture}.expert_count": u32(self.experts),
        }
        extra = used if self.experts else {}
        keys = metadata(Shape(self.architecture, self.layers, self.columns, self.heads, self.kv_heads, extra=extra))
        facts = ModelFacts(self.architecture, self.layers, self.heads, self.kv_heads, self.experts)
        return MappedModel("random", keys, tensors, facts)


BUILDS = (
    Build("16-layers", 16, tied=True),
    Build("33-layers-grouped-by-4", 33, heads=8, kv_heads=2),
    Build("40-layers-grouped-by-3", 40, heads=6, kv_heads=2, architecture="qwen2"),
    Build("70b", 80, heads=8, kv_heads=1),
    Build("65b", 80),
    Build("qwen2-72b", 80, heads=6, kv_heads=2, architecture="qwen2"),
    Build("mixtral-8x7b", 32, heads=8, kv_heads=2, experts=8),
    Build("8-experts-tied", 5, experts=8, tied=True),
    Build("4-experts", 18, heads=6, kv_heads=2, experts=4),
    Build("3-experts", 18, experts=3),
    Build("128-experts", 20, heads=8, kv_heads=1, experts=128, architecture="qwen3moe"),
    Build("shared-expert", 20, experts=60, architecture="qwen2moe", shared=True),
    Build("fused-attention", 24, architecture="phi3", fused=True),
    Build("rows-of-160", 17, columns=160, down_columns=288),
    Build("rows-of-80", 17, heads=8, kv_heads=2, columns=80, down_columns=256, tied=True),
    Build("down-rows-of-64", 16, down_columns=64),
    Build("gemma", 26, heads=8, kv_heads=4, architecture="gemma3", tied=True),
)
OVERRIDDEN = (BUILDS[0], BUILDS[7], BUILDS[13])
WRITTEN = (
    Build("dense", 8, heads=8, kv_heads=2),
    Build("experts", 2, experts=8),
    Build("odd-rows", 4, columns=160, down_columns=80, tied=True),
)


MIXTURE = Overrides()  # the target's own


@dataclass(frozen=True)
class Source:
    """A build for both sides: the model, its f32 file, an importance for every matrix but the embedding."""

    model: MappedModel
    path: Path
    importance: Importance


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Build], Source]:
    folder = tmp_path_factory.mktemp("builds")

    @cache
    def made(build: Build) -> Source:
        model, path = build.model(), folder / f"{build.name}.gguf"
        write_gguf(plan_export(model, find_target("f32")), path, threads=1)
        rng = np.random.default_rng(7)
        importance = {
            name: rng.random((*rows.shape[:-2], rows.shape[-1]), np.float32) + np.float32(0.01)
            for name, rows in model.tensors.items()
            if len(rows.shape) > 1 and name != "token_embd.weight"
        }
        return Source(model, path, importance)

    return made


def our_types(model: MappedModel, target: Target, overrides: Overrides, *, has_importance: bool) -> dict[str, str]:
    candidates = [Candidate(name, rows.shape, GGMLType.F32) for name, rows in model.tensors.items()]
    chosen = choose_types(candidates, target, model.facts, overrides, has_importance=has_importance)
    return {name: kind.name for name, kind in chosen.items()}


def assert_same_types(source: Source, target: Target, overrides: Overrides = MIXTURE) -> None:
    for importance in (None, source.importance):
        try:
            expected = llama_types(source.path, target.file_type, importance=importance, overrides=overrides)
        except ValueError:  # a type that cannot hold the rows and for which llama.cpp has no fall-back
            with pytest.raises(UsageError, match="rows of a multiple of"):
                our_types(source.model, target, overrides, has_importance=importance is not None)
            continue
        got = our_types(source.model, target, overrides, has_importance=importance is not None)
        assert len(expected) == len(source.model.tensors)
        assert got == expected


def assert_same_bytes(source: Source, target: Target, folder: Path, overrides: Overrides = MIXTURE) -> None:
    for importance in (None, source.importance):
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        succeeded = llama_quantize(source.path, theirs, target.file_type, importance=importance, overrides=overrides)
        try:
            plan = plan_export(source.model, target, PlanOptions(overrides, importance, "ggml"))
        except (CalibrationError, UsageError):
            assert not succeeded
            continue
        assert succeeded
        write_gguf(plan, ours, threads=1)
        expected, got = tensors_of(theirs), tensors_of(ours)
        assert [name for name in expected if got[name] != expected[name]] == []
        assert list(got) == list(expected)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_types_of_every_target_equal_those_of_llama_quantize(build: Build, sources: Callable[[Build], Source]) -> None:
    for target in TARGETS:
        assert_same_types(sources(build), target)


OVERRIDES = {
    "pure": Overrides(pure=True),
    "output": Overrides(output=GGMLType.Q8_0),
    "embedding": Overrides(embedding=GGMLType.Q4_0),
    "output-left-as-it-is": Overrides(leave_output=True),
    "patterns": Overrides(patterns=((r"ffn_down", GGMLType.Q6_K), (r"blk\.[02]\..*", GGMLType.Q8_0))),
    "all-at-once": Overrides(((r"attn_v", GGMLType.Q5_1),), GGMLType.Q4_1, GGMLType.Q8_0, pure=True),
}


@pytest.mark.parametrize("overrides", OVERRIDES.values(), ids=OVERRIDES)
@pytest.mark.parametrize("build", OVERRIDDEN, ids=lambda build: build.name)
def test_types_by_hand_equal_those_of_llama_quantize(
    build: Build, overrides: Overrides, sources: Callable[[Build], Source]
) -> None:
    for target in TARGETS:
        assert_same_types(sources(build), target, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
@pytest.mark.parametrize("build", WRITTEN, ids=lambda build: build.name)
def test_bytes_equal_those_of_llama_quantize(
    build: Build, target: Target, sources: Callable[[Build], Source], tmp_path: Path
) -> None:
    assert_same_bytes(sources(build), target, tmp_path)


@pytest.mark.parametrize("overrides", OVERRIDES.values(), ids=OVERRIDES)
def test_bytes_by_hand_equal_those_of_llama_quantize(
    overrides: Overrides, sources: Callable[[Build], Source], tmp_path: Path
) -> None:
    for label in ("Q4_K_M", "Q2_K", "Q4_0", "F16"):
        assert_same_bytes(sources(WRITTEN[0]), find_target(label), tmp_path, overrides)
