"""Every kind of target × every goal × {plain, with a recipe, with an adapter, packed}: it works, or the table refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch")

from safetensors.numpy import save_file
from wire_models import text_beside, write_small_llama

from edgepack.errors import TokenizerError, UsageError
from edgepack.export.mapped_model import open_model
from edgepack.gguf.reader import read_header
from edgepack.packaging.archive import open_archive
from edgepack.packaging.derivation import MEMBER
from edgepack.pipeline.accepted import check_request
from edgepack.pipeline.export import run_export
from edgepack.pipeline.goals import judging
from edgepack.pipeline.request import ExportRequest
from edgepack.quant.codecs.ggml.codec import quantize_rows

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.fidelity.scorers.scorer import Scorer
    from edgepack.edge.fidelity.scoring import ScoringOptions

TARGETS = {"gguf": "gguf-q8", "coded": "edge-nf4", "wire": "wire"}
GOALS: dict[str, dict[str, Any]] = {
    "given": {}, "size": {"max_size": "700kB"}, "gate": {"max_kl": 0.5}, "bits": {"bits": 7.0},
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "recipe": {"passes": ("prune:method=magnitude,sparsity=0.1",)}, "adapter": {},
    "separate": {"adapter_mode": "separate"}, "pack": {"pack": True},
}  # fmt: skip
CELLS = list(product(TARGETS, GOALS, VARIANTS))
# What the table refuses, and nothing else.
REFUSED = {
    ("gguf", "bits"): "--bits: expected ",  # calibration, or passes that refinement does not undo
    ("coded", "bits"): "--bits: expected a gguf target or --target wire",
    ("wire", "given"): "expected exactly one of --bits, --max-size, --max-download, --min-agreement, --max-kl",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.3 M random parameters with the bundled tokenizer."""
    return write_small_llama(tmp_path_factory.mktemp("matrix") / "small")


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    """Text to calibrate and to score on."""
    return text_beside(model, 4000)


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    """A PEFT LoRA that changes two matrices visibly."""
    folder = model.parent / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = rng.standard_normal((2, 64), np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.standard_normal((64, 2), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def request_of(kind: str, goal: str, variant: str, model: Path, text: Path, adapter: Path) -> ExportRequest:
    """The request of a cell; a gguf target is left open where the goal finds one."""
    target = None if kind == "gguf" and goal in ("size", "gate") else TARGETS[kind]
    request = ExportRequest(model, target, text=text, chunks=4, threads=1, **GOALS[goal], **VARIANTS[variant])
    if kind == "wire" or variant == "recipe":
        request = replace(request, calibration=text)
    return replace(request, adapter=adapter) if variant in ("adapter", "separate") else request


@pytest.mark.parametrize(("kind", "goal", "variant"), CELLS, ids=map("-".join, CELLS))
def test_every_goal_works_with_every_target(
    kind: str, goal: str, variant: str, model: Path, text: Path, adapter: Path, tmp_path: Path
) -> None:
    request = request_of(kind, goal, variant, model, text, adapter)
    packs = variant == "pack"
    out = tmp_path / ("out.edgepack" if packs else "out.gguf")
    request = replace(request, output=out)
    if (kind, goal) in REFUSED:
        with pytest.raises(UsageError) as refusal:
            run_export(request)
        assert REFUSED[kind, goal] in str(refusal.value)
        assert not list(tmp_path.iterdir())
        return
    result = run_export(request)
    assert result.output == out
    assert result.bytes == out.stat().st_size
    assert result.passed
    beside = {"out-lora.gguf"} if variant == "separate" else set()
    assert {path.name for path in tmp_path.iterdir()} == {out.name} | beside
    shipped = result.as_json()["archive_bytes"] if kind == "wire" else sum(p.stat().st_size for p in tmp_path.iterdir())
    if goal == "size":
        assert shipped <= 700_000
    if goal == "gate":
        # A ladder and a scalar are judged while they are searched; what was asked for by its name, at the end.
        assert result.tried[-1].passed if result.tried else result.validation is not None
    if goal == "bits":
        assert result.as_json()["bits_per_weight"] <= 7.0
    if packs:
        with open_archive(out) as archive:
            assert [member.name for member in archive.members] == ["out.gguf", MEMBER]
    else:
        assert ("edgepack.recipe" in read_header(out).metadata) == (variant == "recipe")


def test_a_packed_export_holds_its_adapter(model: Path, text: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.edgepack"
    request = request_of("gguf", "given", "separate", model, text, adapter)
    run_export(replace(request, output=out))  # an archive because of its name
    with open_archive(out) as archive:
        assert [member.name for member in archive.members] == ["m.gguf", "m-lora.gguf", MEMBER]
    assert [path.name for path in tmp_path.iterdir()] == ["m.edgepack"]


def test_gates_hold_the_file_against_the_original_with_its_adapter(
    model: Path, text: Path, adapter: Path, tmp_path: Path
) -> None:
    divergence = {}
    for mode in ("merge", "separate"):
        request = request_of("gguf", "given", "adapter", model, text, adapter)
        request = replace(request, adapter_mode=mode, validate=True, output=tmp_path / f"{mode}.gguf")
        validation = run_export(request).validation
        assert validation is not None
        divergence[mode] = validation.candidates[0].validation.statistics.divergence.mean
    assert max(divergence.values()) < 1e-2  # against the original alone it is far more
    plain = run_export(replace(request_of("gguf", "given", "plain", model, text, adapter), validate=True,
                               output=tmp_path / "plain.gguf"))  # fmt: skip
    assert plain.validation is not None


def test_a_dry_run_of_every_kind_says_what_is_written_without_writing(model: Path, text: Path, tmp_path: Path) -> None:
    for kind, goal in (("gguf", "given"), ("gguf", "size"), ("coded", "given"), ("wire", "bits")):
        for passes in ((), ("prune:method=layers,layers=1",)):
            request = request_of(kind, goal, "plain", model, text, text)
            calibration = text if kind == "wire" else None
            request = replace(request, output=tmp_path / "x.gguf", dry_run=True, calibration=calibration, passes=passes)
            result = run_export(request)
            layers = {row.name.split(".")[1] for row in result.outline.tensors if row.name.startswith("blk.")}
            assert layers == ({"0", "1"} if not passes else {"0"})
            assert result.bytes == result.outline.bytes > 0
            assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "gguf-q8", "host_type": "q8"}, "--host-type: expected --target wire, got 'gguf-q8'"),
        ({"target": "wire", "bits": 4.0, "imatrix": "x"}, "--imatrix: expected a gguf or an edge target, got 'wire'"),
        ({"target": "edge-nf4", "shard_size": "1MB"}, "--shard-size: expected a gguf target, got 'edge-nf4'"),
        ({"target": "gguf-q8", "pack": True, "output": "x.gguf"}, "expected an output that ends in .edgepack"),
        ({"target": "gguf-q8", "min_agreement": 1.5}, "--min-agreement: expected more than 0 and at most 1, got 1.5"),
        ({"target": "gguf-q8", "max_size": "ten"}, "size 'ten': expected a number"),
        ({"target": "gguf-q8", "recipe": "r.toml", "passes": ("awq",)}, "expected one of them, got both"),
    ],
)
def test_what_does_not_go_together_is_one_line_from_one_table(
    options: dict[str, Any], message: str, model: Path
) -> None:
    with pytest.raises(UsageError) as refusal:
        check_request(ExportRequest(model, **options))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_pre_tokenizer_named_by_hand_serves_every_kind(model: Path, text: Path, tmp_path: Path) -> None:
    """A split expression that nobody knows: refused without `pre`, taken by every kind with it."""
    folder = tmp_path / "unknown"
    shutil.copytree(model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    splits = [step for step in tokenizer["pre_tokenizer"]["pretokenizers"] if step["type"] == "Split"]
    splits[0]["pattern"] = {"Regex": r"\p{L}+|\p{N}|[^\p{L}\p{N}]+"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for kind, goal in (("gguf", "given"), ("coded", "given"), ("wire", "bits")):
        request = replace(request_of(kind, goal, "plain", folder, text, text), output=tmp_path / f"{kind}.gguf")
        with pytest.raises(TokenizerError):
            run_export(request)
        assert run_export(replace(request, pre="llama-bpe")).bytes > 0
        assert read_header(tmp_path / f"{kind}.gguf").get("tokenizer.ggml.pre") == "llama-bpe"


def test_a_gate_opens_its_original_once_for_all_tries(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    real = judging.open_reference

    def counted(path: Path, options: ScoringOptions) -> Scorer:
        opened.append(options.threads)
        return real(path, options)

    monkeypatch.setattr(judging, "open_reference", counted)
    request = request_of("wire", "gate", "plain", model, text, text)
    result = run_export(replace(request, output=tmp_path / "x.gguf", max_kl=0.02))
    assert len(result.tried) > 1
    assert opened == [1]  # once, with the threads that were asked for


def test_the_bytes_of_llama_cpps_own_quantiser_are_an_option(books: Path, tmp_path: Path) -> None:
    for quantizer in ("edgepack", "ggml"):
        run_export(ExportRequest(books, "gguf-q4_0", quantizer=quantizer, output=tmp_path / f"{quantizer}.gguf"))
    tensor = read_header(tmp_path / "ggml.gguf").tensor("blk.0.attn_q.weight")
    weights = open_model(books).tensors["blk.0.attn_q.weight"].read(0, 256)
    expected = quantize_rows(tensor.type, weights, quantizer="ggml").tobytes()
    start = read_header(tmp_path / "ggml.gguf").data_start + tensor.offset
    assert (tmp_path / "ggml.gguf").read_bytes()[start : start + tensor.nbytes] == expected
    assert (tmp_path / "edgepack.gguf").stat().st_size == (tmp_path / "ggml.gguf").stat().st_size
