"""What is measured has llama-bench's meaning and is kept; the doctor names what this build cannot use."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from llama_cpp import llama_cpp

from edgepack.cli import execute as run
from edgepack.edge.bench import append_result, earlier_result, measure, results_path
from edgepack.edge.doctor import examine, example_shape, gpu_finding, prospects
from edgepack.edge.fit.devices import profiles
from edgepack.edge.llama import build, engines
from edgepack.edge.llama.context import Context
from edgepack.edge.llama.options import RuntimeOptions

if TYPE_CHECKING:
    from pathlib import Path

SHORT = ["-r", "2", "-p", "32", "--n-gen", "8", "--threads", "1"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))


def test_bench_evaluates_as_many_tokens_as_llama_bench(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = Context.evaluate

    def spy(self: Context, ids: object, **options: object) -> None:
        sizes.append(len(ids))  # type: ignore[arg-type]
        original(self, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Context, "evaluate", spy)
    result = measure(tiny, RuntimeOptions(n_ctx=512, threads=1), "here", repetitions=2)
    assert (result.pp.n, result.tg.n) == (512, 128)
    assert sizes.count(512) == 1 + 2 + 1  # warm-up, repetitions, the first token
    assert sizes.count(1) == (1 + 2) * 128


def test_bench_prints_the_contracts_keys_and_keeps_the_result(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(tiny), "--json", *SHORT]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["pp"]["n"] == 32
    assert result["tg"]["n"] == 8
    for speed in (result["pp"], result["tg"]):
        assert 0 < speed["least"] <= speed["tokens_per_second"] <= speed["most"]
    assert result["load_seconds"] > 0
    assert result["peak_memory_bytes"] > 10**7
    assert len(results_path().read_text().splitlines()) == 1
    assert run(["bench", str(tiny), "--compare", *SHORT]) == 0
    out = capfd.readouterr().out
    assert out.count("| tiny.gguf |") == 2
    assert "now / before" in out


def test_only_the_same_model_on_the_same_device_is_compared(tiny: Path) -> None:
    result = measure(tiny, RuntimeOptions(n_ctx=64, threads=1), "here", repetitions=1, n_prompt=8, n_generate=2)
    for kept in (replace(result, device="there", time=1.0), replace(result, model="other", time=2.0)):
        append_result(kept)
    with results_path().open("a") as stream:
        stream.write('{"torn\n')
    assert earlier_result(result) is None
    append_result(replace(result, time=3.0))
    assert earlier_result(result) == replace(result, time=3.0)


def test_the_doctor_fits_on_a_screen(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert run(["doctor", "--device", "gtx-1660", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert {"edgepack", "engine", "CPU", "GPU", "memory", "cache"} <= (
        {finding["what"] for finding in report["findings"]}
    )
    assert any(prospect["fits"] for prospect in report["prospects"])


def test_kernels_that_end_the_process_are_not_run_and_the_doctor_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    load = llama_cpp.llama_model_load_from_file
    monkeypatch.setattr(
        llama_cpp, "llama_model_load_from_file", lambda *given: taken.append(given[1].use_extra_bufts) or load(*given)
    )
    for features in ("AVX512 = 1 | REPACK = 1", "AVX512 = 1 | AMX_INT8 = 1 | REPACK = 1"):
        monkeypatch.setattr(build, "system_info", lambda _name, features=features: features)
        engines.open_model(tiny, RuntimeOptions(n_ctx=64, engine="llama-cpp-python")).close()
        advice = [finding.advice for finding in examine() if finding.found.startswith("llama-cpp-python")]
        assert ("mno-amx-int8" in advice[0]) is ("AMX" in features)
    assert taken == [True, False]


def test_the_doctor_names_the_build_that_a_card_needs() -> None:
    gtx = gpu_finding(profiles()["gtx-1660"], offloads=True)
    assert "FORCE_MMQ" in gtx.advice
    assert "61-virtual;80-virtual" in gtx.advice
    assert "GGML_CUDA=on" in gpu_finding(profiles()["rtx-3060"], offloads=False).advice
    assert gpu_finding(profiles()["rtx-3060"], offloads=True).advice == ""
    assert all(finding.found for finding in examine())


def test_the_doctors_examples_have_the_size_of_their_files() -> None:
    # bartowski/Meta-Llama-3.1-8B-Instruct-GGUF lists Q4_K_M as 4.92 GB and Q8_0 as 8.54 GB.
    assert example_shape("Llama 3.1 8B", 4.85).nbytes == pytest.approx(4.92e9, rel=0.03)
    assert example_shape("Llama 3.1 8B", 8.5).nbytes == pytest.approx(8.54e9, rel=0.03)
    verdicts = {(p.model, p.type): p.fits for p in prospects(profiles()["gtx-1660"])}
    assert verdicts["Llama 3.2 3B", "Q4_K_M"]
