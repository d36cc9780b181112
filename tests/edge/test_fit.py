"""A choice never overflows its device; what is told to people and scripts is what was chosen."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fit_truth import FULL
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_sparse

from edgepack.cli import execute as run
from edgepack.edge.fit import devices
from edgepack.edge.fit.choice import Fitter, FitWish
from edgepack.edge.fit.devices import Device, find_device, installed_gpus, profiles
from edgepack.edge.fit.memory import plan_memory
from edgepack.edge.fit.probe import CpuProbe, ProbePoint, probe_cpu, write_twin
from edgepack.edge.fit.shape import ModelShape, read_shape
from edgepack.edge.fit.speed import device_tokens_per_second
from edgepack.edge.llama.check import read_runnable
from edgepack.errors import UsageError
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def shapes(folder: Path) -> dict[str, ModelShape]:
    return {name: read_shape(read_header(write_sparse(folder / f"{name}.gguf", s))) for name, s in FULL.items()}


@given(
    name=st.sampled_from(sorted(FULL)),
    memory=st.integers(512, 26000),
    kind=st.sampled_from(["cuda", "metal", "vulkan", "cpu"]),
    asked=st.booleans(),
    n_ctx=st.sampled_from([None, 512, 4096, 8192]),
    kv=st.sampled_from([None, "f16", "q8_0", "q4_0"]),
)
@settings(max_examples=25, deadline=None)
def test_a_choice_leaves_the_margin_free(
    shapes: dict[str, ModelShape], name: str, memory: int, kind: str, asked: bool, n_ctx: int | None, kv: str | None
) -> None:
    free = memory * MIB - 100 * MIB if asked else None
    device = Device("test", "test", kind, memory * MIB, 2e11, free)
    fit = Fitter(shapes[name], device, FitWish(n_ctx, kv)).choose()
    if fit.fits:
        plan = plan_memory(shapes[name], fit.request)
        use = plan.gpu if device.is_gpu and fit.request.n_gpu_layers else plan.cpu
        limit = (free or device.memory) if fit.request.n_gpu_layers or not device.is_gpu else 16 * 10**9
        assert use.total + fit.overhead + (fit.margin if limit != 16 * 10**9 else 0) <= limit
        assert plan.cpu.total <= 16 * 10**9 or not device.is_gpu
        assert n_ctx is None or fit.request.n_ctx == n_ctx
        assert kv is None or fit.request.kv_type_k == kv


def test_the_largest_context_fits_and_the_next_does_not(shapes: dict[str, ModelShape]) -> None:
    fitter = Fitter(shapes["llama 8B"], profiles()["gtx-1660"])
    largest = fitter.largest_context("q8_0")
    request = fitter.choose().request
    assert fitter.fits(replace(request, n_ctx=largest, kv_type_k="q8_0", kv_type_v="q8_0", n_ubatch=512))
    assert not fitter.fits(replace(request, n_ctx=largest + 256, kv_type_k="q8_0", kv_type_v="q8_0", n_ubatch=512))


def test_more_memory_never_moves_layers_off_the_gpu(shapes: dict[str, ModelShape]) -> None:
    layers = []
    for memory in range(1024, 14000, 1024):
        device = Device("test", "test", "cuda", memory * MIB, 2e11)
        fit = Fitter(shapes["llama 8B"], device, FitWish(4096, "f16")).choose()
        layers.append(fit.request.n_gpu_layers)
    assert layers == sorted(layers)
    assert layers[-1] == 33


def test_more_layers_on_a_faster_device_are_faster(shapes: dict[str, ModelShape]) -> None:
    speeds = [device_tokens_per_second(shapes["llama 8B"], profiles()["rtx-3060"], n) or 0 for n in range(34)]
    assert speeds == sorted(speeds)


@pytest.mark.parametrize("name", ["llama 3B", "llama 8B"])
@pytest.mark.parametrize("device", ["gtx-1660", "rtx-3060"])
def test_the_issues_four_tables(
    folder: Path, shapes: dict[str, ModelShape], name: str, device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / f"{name}.gguf"
    assert run(["fit", str(path), "--device", device, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    keys = {"device", "fits", "n_gpu_layers", "ctx", "kv_type", "memory", "tokens_per_second"}
    assert keys <= set(result)
    assert set(result["memory"]) == {"weights", "kv", "compute", "overhead", "total"}
    assert sum(result["memory"][k] for k in ("weights", "kv", "compute", "overhead")) == result["memory"]["total"]
    assert result["memory"]["total"] <= result["available"]
    assert run(["fit", str(path), "--device", device]) == 0
    table = capfd.readouterr().out
    assert "fits" in table
    assert "largest context" in table
    assert "tokens/s" in table


def test_what_does_not_fit_says_so_with_exit_code_1(
    folder: Path, shapes: dict[str, ModelShape], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", str(folder / "gemma2 9B.gguf"), "--device", "gtx-1660", "--host-memory", "3GB"]
    assert run(arguments) == 1
    assert "DOES NOT FIT (needs" in capfd.readouterr().out


def test_a_context_beyond_the_trained_one_is_refused(shapes: dict[str, ModelShape]) -> None:
    with pytest.raises(UsageError, match="trained with 8192"):
        Fitter(shapes["gemma2 9B"], profiles()["rtx-3060"], FitWish(100_000))


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="gtx-1660"):
        find_device("gtx1660")


def test_every_profile_states_its_source_and_figures() -> None:
    assert {"gtx-1660", "gtx-1660-super", "gtx-1660-ti", "rtx-3060", "rtx-3060-8gb", "rtx-3060-laptop", "rtx-4060"} <= (
        set(profiles())
    )
    for profile in profiles().values():
        assert profile.source
        assert profile.memory > 2**30
        assert 1e10 < (profile.bandwidth or 0) < 2e12
    assert profiles()["gtx-1660"].bandwidth == 192e9
    assert profiles()["gtx-1660"].lacks_tensor_cores
    assert not profiles()["rtx-3060"].lacks_tensor_cores


def test_nvidia_smis_answer_becomes_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "NVIDIA GeForce GTX 1660, 6144, 5200, 7.5\nbroken line\nNVIDIA GeForce RTX 3060, 12288, 11000, 8.6\n"
    monkeypatch.setattr(devices.shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    done = subprocess.CompletedProcess([], 0, answer, "")
    monkeypatch.setattr(devices.subprocess, "run", lambda *_args, **_options: done)
    first, second = installed_gpus()
    assert (first.name, first.free, first.bandwidth) == ("NVIDIA GeForce RTX 3060", 11000 * MIB, 360e9)
    assert (second.compute_capability, second.bandwidth, second.lacks_tensor_cores) == ("7.5", 192e9, True)


def test_a_twin_has_the_models_layers_and_the_probe_is_cached(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path))
    header = read_runnable(tiny)
    shape = read_shape(header)
    twin = read_shape(read_header(write_twin(header, shape, [1, 0], tmp_path / "twin.gguf")))
    assert [layer.nbytes for layer in twin.layers] == [layer.nbytes for layer in reversed(shape.layers)]
    assert twin.n_vocab == shape.n_vocab
    probe = probe_cpu(header, shape, threads=1)
    assert probe.seconds_per_token(shape) > 0
    assert probe_cpu(header, shape, threads=1) == probe  # a second measurement could not be equal


def test_a_line_through_two_twins_gives_the_whole_model(shapes: dict[str, ModelShape]) -> None:
    shape = shapes["llama 8B"]
    seconds = 1e-9
    probe = CpuProbe((ProbePoint(1, 10**8, 0.01 + 10**8 * seconds), ProbePoint(3, 4 * 10**8, 0.01 + 4e8 * seconds)))
    assert probe.seconds_per_token(shape) == pytest.approx(0.01 + shape.bytes_per_token * seconds)


def test_the_table_over_contexts_agrees_with_each_fit_alone(tiny: Path) -> None:
    import edgepack

    found = edgepack.fit(tiny, device="gtx-1660")
    assert found.contexts
    assert found.contexts[-1].ctx == found.ctx_train
    assert [row.ctx for row in found.contexts] == sorted({row.ctx for row in found.contexts})
    for row in found.contexts:
        alone = edgepack.fit(tiny, device="gtx-1660", ctx=row.ctx)
        assert (row.fits, row.kv_type, row.n_gpu_layers) == (alone.fits, alone.kv_type, alone.n_gpu_layers)
        assert (row.kv, row.total) == (alone.memory.kv, alone.memory.total)
