"""`edgepack analyze`: spectra against numpy on made matrices, and the command on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepack.cli import execute as run
from edgepack.quant.passes.lowrank.analysis import output_spectra, rounding_sensitivity
from edgepack.quant.passes.lowrank.spectrum import compression_at, spectrum_of, weight_spectrum

BOOKS = Path(__file__).resolve().parent.parent / "data" / "books-llama-6m"


def test_equal_eigenvalues_use_every_direction() -> None:
    spectrum = spectrum_of(np.ones(100))
    assert spectrum.effective_rank == pytest.approx(100)
    assert spectrum.k_for == {"90%": 90, "95%": 95, "99%": 99}
    assert spectrum.variance_at == {"9": pytest.approx(0.09), "22": pytest.approx(0.22)}


def test_one_large_eigenvalue_is_one_direction() -> None:
    spectrum = spectrum_of(np.array([1e-9, 1.0, 1e-9]))
    assert spectrum.effective_rank == pytest.approx(1)
    assert spectrum.k_for == {"90%": 1, "95%": 1, "99%": 1}


def test_a_weights_spectrum_is_that_of_its_singular_values() -> None:
    weight = np.random.default_rng(0).standard_normal((12, 30)).astype(np.float32) + 2
    singular = np.linalg.svd(weight.astype(np.float64) - weight.mean(0, dtype=np.float64), compute_uv=False)
    found = weight_spectrum(weight, centred=True)
    assert found.dimensions == 12
    assert found.variance_at["9"] == pytest.approx((singular[:9] ** 2).sum() / (singular**2).sum(), rel=1e-6)


def test_centring_takes_out_what_all_rows_share() -> None:
    weight = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32) + 50
    assert weight_spectrum(weight, centred=False).effective_rank < 1.1
    assert weight_spectrum(weight, centred=True).effective_rank > 10


def test_a_massive_dimension_at_the_first_token_fools_only_the_raw_spectrum() -> None:
    activations = torch.randn(8, 16, 24, generator=torch.Generator().manual_seed(0))
    activations[:, 0, 3] = 1000
    spectra = output_spectra(activations)
    assert spectra["raw"].effective_rank < 1.1
    assert spectra["standardised"].effective_rank > 15
    assert spectra["first token dropped, raw"].effective_rank > 15


def test_factors_save_nothing_at_half_the_rank_of_a_square() -> None:
    assert compression_at(256, 256, 128) == 1
    assert compression_at(256, 256, 9) == pytest.approx(14.2, abs=0.1)


def test_sensitivity_is_the_share_of_the_output_that_rounding_costs() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    assert 1e-4 < rounding_sensitivity(weight, np.eye(64, dtype=np.float32)) < 0.02
    weight = np.random.default_rng(0).integers(0, 16, (16, 64)).astype(np.float32)
    weight[:, [0, 32]], weight[:, [1, 33]] = 0, 15
    assert rounding_sensitivity(weight, np.eye(64, dtype=np.float32)) < 1e-6


@pytest.mark.slow
def test_the_command_prints_saves_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "t.txt"
    text.write_text("It was a quiet morning and nobody had yet come down to the river. " * 40)
    page, figures = tmp_path / "r.html", tmp_path / "r.json"
    options = ["--text", str(text), "--sequences", "2", "--length", "32", "--report", str(page), "-o", str(figures)]
    assert run(["analyze", str(BOOKS), *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(figures.read_text())
    assert len(printed["weights"]) == 42
    assert len(printed["activations"]) == 6
    assert set(printed["activations"][0]["spectra"]) >= {"raw", "centred", "standardised"}
    assert 0.05 < printed["weights"][0]["spectra"]["centred"]["variance_at"]["9"] < 0.6
    html = page.read_text()
    assert html.count("<svg") == 1 + 7 + 1  # the map, a panel for each of seven kinds, activations
    assert "http" not in html.replace("http-equiv", "")


def test_weights_alone_need_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", str(BOOKS)]) == 0
    out = capsys.readouterr().out
    assert "model.layers.5.mlp.down_proj.weight" in out
    assert "activations" not in out


def test_a_text_and_own_samples_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", str(BOOKS), "--text", "x", "--own-samples"]) == 2
    assert "expected one of them, got both" in capsys.readouterr().err


def test_the_architecture_is_the_configurations_and_sizes_are_the_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["analyze", str(BOOKS), "--architecture", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    config = json.loads((BOOKS / "config.json").read_text())
    for ours, theirs in {"hidden_size": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
                         "kv_heads": "num_key_value_heads", "vocabulary": "vocab_size",
                         "feed_forward": "intermediate_size", "context": "max_position_embeddings"}.items():  # fmt: skip
        assert told[ours] == config[theirs]
    assert (told["architecture"], told["kind"]) == ("llama", "decoder")
    assert sum(told["parts"].values()) == told["parameters"]
    assert told["memory"][-1]["ctx"] == config["max_position_embeddings"]
    # two caches of 4 heads of 32 in F16, a cell a token, in each of 6 layers
    assert told["memory"][-1]["kv"] == 2 * 4 * 32 * 2 * 6 * config["max_position_embeddings"]
    assert run(["export", str(BOOKS), "--target", "gguf-q4km", "-o", str(tmp_path / "m.gguf")]) == 0
    sizes = {each["target"]: each["bytes"] for each in told["targets"]}
    assert sizes["gguf-q4km"] == (tmp_path / "m.gguf").stat().st_size
    capsys.readouterr()
    assert run(["analyze", str(tmp_path / "m.gguf"), "--architecture"]) == 0
    assert "Q4_K_M" in capsys.readouterr().out


def test_the_summary_recommends_what_half_of_the_matrices_need() -> None:
    from edgepack.quant.passes.lowrank.summary import summarise

    rng = np.random.default_rng(0)
    narrow = rng.standard_normal((64, 4)) @ rng.standard_normal((4, 48))
    full = rng.standard_normal((64, 48))
    matrices = [((64, 48), weight_spectrum(w.astype(np.float32), centred=True)) for w in (narrow, narrow, full)]
    found = summarise(matrices)
    assert found is not None
    assert found.recommended_k <= 4
    assert found.saves
    assert next(size for size in found.sizes if size.k == 8).bytes == 3 * 8 * (64 + 48) * 2
    all_full = summarise(matrices[2:])
    assert all_full is not None
    assert not all_full.saves
    assert "saves nothing" in all_full.meaning
    assert summarise([]) is None


def test_weights_of_any_architecture_are_analysed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text('{"model_type": "unheard-of", "architectures": ["NewForCausalLM"]}')
    rng = np.random.default_rng(0)
    tensors = {f"body.{i}.mix.weight": rng.standard_normal((16, 24)).astype(np.float32) for i in range(11)}
    tensors |= {"body.0.norm.weight": np.ones(24, np.float32), "table.weight": np.ones((99, 24), np.float32)}
    tensors["body.2.experts.up"] = rng.standard_normal((3, 16, 24)).astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert run(["analyze", str(tmp_path), "--json"]) == 0
    names = [each["name"] for each in json.loads(capsys.readouterr().out)["weights"]]
    assert len(names) == 11 + 3
    assert names.index("body.2.mix.weight") < names.index("body.10.mix.weight")
    assert "body.2.experts.up[2]" in names
