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
    assert html.count("<svg") == 3
    assert "http" not in html.replace("http-equiv", "")


def test_weights_alone_need_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", str(BOOKS)]) == 0
    out = capsys.readouterr().out
    assert "model.layers.5.mlp.down_proj.weight" in out
    assert "activations" not in out


def test_a_text_and_own_samples_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", str(BOOKS), "--text", "x", "--own-samples"]) == 2
    assert "expected one of them, got both" in capsys.readouterr().err
