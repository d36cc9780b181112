"""The wire target end to end on a small random model: folds are exact, sizes are kept, bad input is named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgepack.errors import CalibrationError, CheckFailedError, NumericError, UsageError
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")

from wire_models import BOOKS, varied_text, write_small_llama  # noqa: E402

from edgepack.cli import main  # noqa: E402
from edgepack.edge.fidelity.certificate_file import wire_facts  # noqa: E402
from edgepack.edge.llama.runtime import LoadedModel  # noqa: E402
from edgepack.export.checkpoint import open_checkpoint  # noqa: E402
from edgepack.export.mapped_model import map_checkpoint, open_model  # noqa: E402
from edgepack.export.wire.drift import Drifted, DriftRun  # noqa: E402
from edgepack.export.wire.origins import Origins  # noqa: E402
from edgepack.export.wire.plan import WireSettings  # noqa: E402
from edgepack.gguf.types import GGMLType  # noqa: E402
from edgepack.model import OverriddenTensors, read_tensor  # noqa: E402
from edgepack.packaging.coding.trellis_symbols import as_indices  # noqa: E402
from edgepack.packaging.pack import pack_archive  # noqa: E402
from edgepack.packaging.restore.unpack import unpack_archive  # noqa: E402
from edgepack.pipeline.accepted import check_request  # noqa: E402
from edgepack.pipeline.goals.scalar import scale_to_size  # noqa: E402
from edgepack.pipeline.makers.wire_host import fits_device  # noqa: E402
from edgepack.pipeline.makers.wire_run import Calibration, Trial, WireRun  # noqa: E402
from edgepack.pipeline.request import ExportRequest  # noqa: E402
from edgepack.quant.calibration.blocks import whole_model  # noqa: E402
from edgepack.quant.calibration.collect import collect  # noqa: E402
from edgepack.quant.calibration.curvature import check_tokens, measure  # noqa: E402
from edgepack.quant.calibration.own_labels import draw_labels  # noqa: E402
from edgepack.quant.codecs.ggml.host_grids import HOSTS  # noqa: E402
from edgepack.trellis import TrellisCode  # noqa: E402


def edgepack(arguments: list[str]) -> int:
    """The command's exit code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("wire") / "small")


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, (6, 64))


@pytest.fixture(scope="module")
def run(model: Path, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory):
    output = tmp_path_factory.mktemp("out") / "small.gguf"
    with WireRun(
        open_checkpoint(model), output, WireSettings(HOSTS["q8"]), Calibration(tokens, "0" * 64), threads=2
    ) as opened:
        yield opened


def divergence(model: Path, gguf: Path, tokens: np.ndarray) -> float:
    """Mean KL of what llama.cpp says of the file against transformers' own model, on a sequence."""
    ids = tokens[0].tolist()
    with torch.no_grad():
        reference = whole_model(open_checkpoint(model))(torch.tensor([ids])).logits[0].log_softmax(-1)
    with LoadedModel(gguf) as loaded:
        candidate = torch.from_numpy(loaded.logits(ids)).log_softmax(-1)
    return float((reference.exp() * (reference - candidate)).sum(-1).mean())


def test_inputs_of_the_curvature_equal_those_that_calibration_collects(
    model: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(model)
    collected = collect(checkpoint, tokens, with_hessian=True).statistics
    found = {name: value for part in measure(checkpoint, tokens, tmp_path) for name, value in part.items()}
    assert set(found) == set(collected)
    for name, value in found.items():
        if "embed" not in name:
            np.testing.assert_allclose(value.inputs.numpy(), collected[name].hessian, rtol=1e-4, atol=1e-6)


def test_curvature_at_the_outputs_equals_the_whole_models_gradients(
    model: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(model)
    found = {name: value for part in measure(checkpoint, tokens, tmp_path, batch=6) for name, value in part.items()}
    whole = whole_model(checkpoint)
    squares: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":

            def look(_module, _inputs, output, name=name):
                output.register_hook(lambda g: squares.update({name: g.reshape(-1, g.shape[-1]).square().mean(0)}))

            handles.append(module.register_forward_hook(look))
    whole.get_input_embeddings().weight.requires_grad_(True)
    logits = whole(torch.from_numpy(tokens)).logits
    flat = logits.detach().reshape(-1, logits.shape[-1])
    labels = draw_labels(flat.softmax(-1), torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels, reduction="sum").backward()
    assert len(squares) == 14
    assert not list(tmp_path.iterdir())
    for name, expected in squares.items():
        np.testing.assert_allclose(found[f"{name}.weight"].outputs, expected, rtol=2e-3, atol=1e-9)


def test_folding_is_exact_so_that_fine_grids_give_the_original(run: WireRun, model: Path, tokens: np.ndarray) -> None:
    run.attempt(run.scale_of(1e-5))
    assert divergence(model, run.gguf, tokens) < 1e-3


def test_divergence_grows_with_the_scale_and_the_archive_shrinks(run: WireRun, model: Path, tokens: np.ndarray) -> None:
    found = []
    for predicted in (1e-3, 1e-2, 1e-1):
        trial = run.attempt(run.scale_of(predicted))
        found.append((trial.archive_bytes, divergence(model, run.gguf, tokens)))
    sizes, costs = zip(*found, strict=True)
    assert sizes[0] > sizes[1] > sizes[2]
    assert costs[0] < costs[1] < costs[2]
    assert 0.2 < costs[2] / 1e-1 < 5


def test_the_archive_restores_the_gguf_and_packing_again_gives_the_same_size(run: WireRun, tmp_path: Path) -> None:
    trial = run.attempt(run.scale_of(1e-2))
    packed = pack_archive(run.gguf, tmp_path / run.archive.name)
    restored = unpack_archive(packed.output, tmp_path / "restored.gguf").output
    assert restored.read_bytes() == run.gguf.read_bytes()
    assert packed.bytes == trial.archive_bytes
    assert packed.bytes < 0.75 * trial.gguf_bytes


def test_a_size_is_hit_within_half_a_percent_and_never_exceeded(run: WireRun) -> None:
    wanted = run.attempt(run.scale_of(3e-2)).archive_bytes - 5000
    trial = scale_to_size(run, wanted)
    assert wanted * 0.995 <= trial.archive_bytes <= wanted
    assert run.archive.stat().st_size == trial.archive_bytes


def test_more_bytes_than_the_host_can_use_give_the_finest_grid(run: WireRun, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, limit = run.attempt, run.scale_of(2e-5)

    def limited(scale: float) -> Trial:
        if scale < limit:
            raise NumericError("rows do not fit")
        return attempt(scale)

    monkeypatch.setattr(run, "trials", [])  # earlier tests tried scales that are too fine here
    monkeypatch.setattr(run, "attempt", limited)
    trial = scale_to_size(run, 1 << 30)
    assert limit <= trial.scale < 2 * limit


@pytest.mark.parametrize("changes", [{"allocation": False}, {"row_steps": False}, {"column_steps": False}])
def test_a_scale_means_about_as_many_bytes_without_an_ingredient(run: WireRun, changes: dict[str, bool]) -> None:
    before, scale = run.model.settings, run.scale_of(1e-2)
    full = run.attempt(scale).archive_bytes
    run.use(replace(before, **changes))
    found = run.attempt(scale).archive_bytes
    run.use(before)
    assert 0.5 < found / full < 2


def test_a_size_below_the_least_names_the_least(run: WireRun) -> None:
    with pytest.raises(UsageError, match=r"expected at least \d+ bytes, the least that this model packs to"):
        scale_to_size(run, 20000)


def test_a_file_fitted_to_drifted_inputs_says_so_and_still_answers(
    run: WireRun, model: Path, tokens: np.ndarray
) -> None:
    before = run.model.settings
    run.use(replace(before, drift=True))
    run.attempt(run.scale_of(1e-2))
    run.use(before)
    assert read_header(run.gguf).metadata["edgepack.wire.drift"].value is True
    assert divergence(model, run.gguf, tokens) < 0.1


def drifting(model: Path, tokens: np.ndarray, spread: float) -> tuple[dict[str, Drifted], dict[str, torch.Tensor]]:
    """What block 1 receives after block 0 became noisier, and its weights."""
    checkpoint = open_checkpoint(model)
    drift, origins = DriftRun(checkpoint, tokens), Origins(checkpoint)
    drift.look(0)
    generator = torch.Generator().manual_seed(0)
    mapped = map_checkpoint(checkpoint).tensors
    noisy = []
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        rows = torch.from_numpy(mapped[name].read(0, mapped[name].shape[0]))
        noise = spread * rows.std() * torch.randn(rows.shape, generator=generator)
        noisy.append((origins.of(name), (rows + noise).numpy()))
    drift.advance(0, noisy)
    return drift.look(1), {
        name: torch.from_numpy(read_tensor(checkpoint.tensors, name)) for name in checkpoint.tensors.specs
    }


def test_without_drift_nothing_is_mixed_and_inputs_are_those_of_calibration(model: Path, tokens: np.ndarray) -> None:
    found, _ = drifting(model, tokens, 0.0)
    collected = collect(open_checkpoint(model), tokens, with_hessian=True).statistics
    assert len(found) == 7
    assert len({id(drifted) for drifted in found.values()}) == 4  # q, k, v and gate, up read the same tensor
    for name, drifted in found.items():
        assert torch.allclose(drifted.mixing, torch.eye(len(drifted.mixing)), atol=1e-4)
        np.testing.assert_allclose(drifted.inputs.numpy(), collected[name].hessian, rtol=1e-3, atol=1e-5)


def test_mixed_weights_give_outputs_nearer_to_the_originals_than_the_weights_themselves(
    model: Path, tokens: np.ndarray
) -> None:
    collected = collect(open_checkpoint(model), tokens, with_hessian=True).statistics
    found, weights = drifting(model, tokens, 0.3)
    for name, drifted in found.items():
        original, own, mixing = (torch.as_tensor(part).double() for part in (
            collected[name].hessian, drifted.inputs, drifted.mixing,
        ))  # fmt: skip
        damping = 0.01 * own.diagonal().mean() * torch.eye(len(own)).double()
        cross = mixing @ (own + damping) - damping  # XᵀY, from the equation that mixing solves
        errors = [
            float(torch.trace(w @ original @ w.T - w @ cross @ v.T - v @ cross.T @ w.T + v @ own @ v.T))
            for w in (weights[name].double(),) for v in (w, w @ mixing)
        ]  # fmt: skip
        assert errors[1] < 0.95 * errors[0]


def test_a_matrix_that_would_outgrow_the_host_keeps_a_plain_grid(run: WireRun) -> None:
    def follow_paths(trial: Trial) -> list[bool]:
        """For each matrix in Q8_0: whether its integers follow the code."""
        found, code = [], TrellisCode(8, 128)
        for tensor in trial.result.plan.tensors:
            if tensor.info.type is GGMLType.Q8_0:
                blocks = tensor.rows.read_blocks(0, tensor.info.rows).reshape(tensor.info.rows, -1, 34)
                integers = blocks[:, :, 2:].view(np.int8).reshape(tensor.info.rows, -1).astype(np.int64)
                multiples = np.gcd.reduce(integers, axis=0).clip(1, 255)
                found.append(as_indices(integers, multiples, code) is not None)
        return found

    assert all(follow_paths(run.attempt(run.scale_of(3e-2))))
    assert not any(follow_paths(run.attempt(run.scale_of(1e-6))))
    run.attempt(run.scale_of(3e-2))
    run.model.keep_trellises(True)
    assert all(follow_paths(run.attempt(run.scale_of(1e-4))))
    run.model.keep_trellises(False)


def test_a_certificate_repeats_how_a_file_of_the_wire_was_made(run: WireRun) -> None:
    run.attempt(run.scale_of(1e-2))
    facts = wire_facts(read_header(run.gguf).metadata)
    assert (facts["host"], facts["trellis"], facts["calibration_sha256"]) == ("Q8_0", 8, "0" * 64)
    assert wire_facts({}) == {}


def test_metadata_says_how_the_file_was_made(run: WireRun) -> None:
    trial = run.attempt(run.scale_of(1e-2))
    metadata = read_header(run.gguf).metadata
    assert metadata["edgepack.wire.host"].value == "Q8_0"
    assert metadata["edgepack.wire.scale"].value == pytest.approx(trial.scale)
    assert metadata["edgepack.wire.calibration_sha256"].value == "0" * 64


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_runs_and_odd_rows_fall_back(host: str, run: WireRun, model: Path, tokens: np.ndarray) -> None:
    before = run.model.settings
    run.use(WireSettings(HOSTS[host]))
    try:
        trial = run.attempt(run.scale_of(3e-2))
    finally:
        run.use(before)
    types = {
        tensor.info.type.name for tensor in trial.result.plan.tensors if tensor.info.name.startswith("blk.0.attn_q")
    }
    assert types == {{"q8": "Q8_0", "q6k": "Q8_0", "q5k": "Q5_1", "q4k": "Q5_0"}[host]}
    assert divergence(model, run.gguf, tokens) < 0.5


@pytest.mark.parametrize("host", HOSTS)
def test_matrices_whose_errors_cost_nothing_fit_every_host(
    host: str, model: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    checkpoint, name = open_checkpoint(model), "model.layers.0.self_attn.o_proj.weight"
    nothing = {name: read_tensor(checkpoint.tensors, name) * np.float32(1e-9)}  # hardly a gradient reaches q, k and v
    dead = replace(checkpoint, tensors=OverriddenTensors(checkpoint.tensors, nothing))
    settings = WireSettings(HOSTS[host])
    with WireRun(dead, tmp_path / "dead.gguf", settings, Calibration(tokens, "0" * 64), threads=2) as opened:
        opened.attempt(opened.scale_of(1e-2))
        with LoadedModel(opened.gguf) as loaded:
            assert np.isfinite(loaded.logits(tokens[0].tolist())).all()


@pytest.mark.parametrize("ids", [[5] * 384, list(range(12)) * 32])
def test_calibration_text_of_one_repeated_line_is_refused(ids: list[int]) -> None:
    with pytest.raises(CalibrationError, match="one line repeated"):
        check_tokens(np.array(ids).reshape(6, 64))


@pytest.mark.parametrize("values", [{}, {"bits": 4.0, "max_kl": 0.1}, {"bits": -1.0}, {"min_agreement": 1.0}])
def test_a_goal_is_exactly_one_sensible_number(values: dict[str, float], model: Path) -> None:
    with pytest.raises(UsageError):
        check_request(ExportRequest(model, "wire", **values))


@pytest.mark.slow
def test_the_command_writes_an_archive_of_the_wanted_size(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "small.edgepack"
    text.write_text(varied_text())
    arguments = ["export", str(model), "--target", "wire", "--host", "q8", "--bits", "7.5", "--pack", "--json",
                 "--calibration", str(text), "-o", str(output)]  # fmt: skip
    assert edgepack(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == found["archive_bytes"] == output.stat().st_size
    assert 7.5 * 0.995 <= found["bits_per_weight"] <= 7.5
    assert edgepack(["fit", str(output), "--device", "gtx-1660", "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert (sizes["file_bytes"], sizes["model_bytes"]) == (found["archive_bytes"], found["gguf_bytes"])
    assert not list(tmp_path.glob(".edgepack-wire-*"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "exactly one of --bits, --max-size"),
        (["--bits", "4", "--host", "q3"], "unknown host 'q3'"),
        (["--bits", "4", "--pure"], "--pure: expected a gguf target, got 'wire'"),
    ],
)
def test_wrong_usage_is_one_line(
    model: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgepack(["export", str(model), "--target", "wire", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_a_host_too_large_for_the_device_names_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepack.pipeline.makers import wire_host as pipeline_wire_host

    fitting = {"q5k", "q4k"}
    monkeypatch.setattr(pipeline_wire_host, "fits_device", lambda _m, host, _d: any(HOSTS[h] is host for h in fitting))
    with pytest.raises(CheckFailedError, match="the largest that does is Q5_K"):
        pipeline_wire_host.check_host(open_model(BOOKS), HOSTS["q8"], "gtx-1660")
    fitting.clear()
    with pytest.raises(CheckFailedError, match="no host fits"):
        pipeline_wire_host.choose_host(open_model(BOOKS), "gtx-1660")


def test_the_fit_of_a_host_is_that_of_its_header(model: Path) -> None:
    assert fits_device(open_model(model), HOSTS["q8"], "gtx-1660")


def test_wire_options_need_the_wire(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edgepack(["export", str(model), "--target", "gguf-q8", "--bits", "4"]) == 2
    assert "--bits: expected --target wire, or --refine" in capsys.readouterr().err
