"""The figures equal those of llama.cpp's own perplexity tool on the same files and text within 1 %."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgepack.cli import execute as run

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/perplexity/q4km-license.txt"
# What the tool prints → where `edgepack validate --json` has it, and the unit.
FIGURES = {
    "Mean PPL(Q)": (("perplexity", "candidate"), 1.0),
    "Mean PPL(base)": (("perplexity", "reference"), 1.0),
    "Mean PPL(Q)/PPL(base)": (("perplexity", "ratio"), 1.0),
    "Cor(ln(PPL(Q)), ln(PPL(base)))": (("perplexity", "correlation"), 0.01),
    "Mean    KLD": (("mean_kl",), 1.0),
    "Maximum KLD": (("max_kl",), 1.0),
    "99.9%   KLD": (("kl_quantiles", "0.999"), 1.0),
    "99.0%   KLD": (("kl_quantiles", "0.99"), 1.0),
    "95.0%   KLD": (("kl_quantiles", "0.95"), 1.0),
    "90.0%   KLD": (("kl_quantiles", "0.9"), 1.0),
    "Median  KLD": (("kl_quantiles", "0.5"), 1.0),
    "Mean    Δp": (("probability_change", "mean"), 0.01),
    "RMS Δp": (("probability_change", "rms"), 0.01),
    "Same top p": (("top1_agreement",), 0.01),
}


def golden() -> dict[str, float]:
    lines = (line for line in GOLDEN.read_text(encoding="utf-8").splitlines() if not line.startswith(("#", "=")))
    found = (re.match(r"(.*\S)\s*:\s*(-?[\d.]+)", line.strip()) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


@pytest.fixture(scope="module")
def ours(books: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("golden")
    for target in ("f32", "q4km"):
        assert (
            run(
                [
                    "export",
                    str(books),
                    "--target",
                    f"gguf-{target}",
                    "-o",
                    str(folder / f"{target}.gguf"),
                    "--quantizer",
                    "ggml",
                ]
            )
            == 0
        )
    arguments = [str(folder / "q4km.gguf"), "--reference", str(folder / "f32.gguf"), "--text", str(ROOT / "LICENSE")]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("click.echo", lambda text="", **_options: lines.append(str(text)))
        assert run(["validate", *arguments, "--ctx", "128", "--json"]) == 0
    return json.loads(lines[-1])


@pytest.mark.parametrize("name", FIGURES)
def test_figure_equals_llama_cpps(name: str, ours: dict) -> None:
    keys, unit = FIGURES[name]
    value = ours
    for key in keys:
        value = value[key]
    assert value == pytest.approx(golden()[name] * unit, rel=0.01)
