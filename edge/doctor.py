"""What this machine has, what its llama.cpp can use of it, and what that means; printing is left to the command."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.edge.fit.choice import Fitter, FitWish
from edgepack.edge.fit.devices import Device, cpu_features, installed_gpus, this_cpu
from edgepack.edge.fit.shape import LayerShape, ModelShape
from edgepack.edge.install.cache_folder import cache_folder
from edgepack.edge.llama.build import has_amx
from edgepack.edge.llama.cpu_threads import free_cores, physical_cores
from edgepack.edge.llama.engines import COMPRESS_EXTRA, choose_engine, installed, supports_gpu
from edgepack.version import __version__

if TYPE_CHECKING:
    from edgepack.edge.llama.engine import EngineName

_CUDA_BUILD = 'CMAKE_ARGS="-DGGML_CUDA=on" pip install --no-binary :all: --force-reinstall llama-cpp-python'
# Without AMX, which `has_amx` tells of: prompts are read faster with AVX-512's repacked matrices than with none.
_PLAIN_BUILD = (
    'CFLAGS="-mno-amx-tile -mno-amx-int8" CXXFLAGS="-mno-amx-tile -mno-amx-int8" pip install --no-cache-dir'
    " --no-binary llama-cpp-python --force-reinstall --no-deps llama-cpp-python"
)
# What ggml-cuda.cu itself advises for Turing cards without tensor cores (the 16 series).
_MMQ_BUILD = _CUDA_BUILD.replace(
    "-DGGML_CUDA=on", "-DGGML_CUDA=on -DGGML_CUDA_FORCE_MMQ=on -DCMAKE_CUDA_ARCHITECTURES=61-virtual;80-virtual"
)
# name → layers, width, heads, KV heads, head width, feed-forward, vocabulary: from the models' config.json.
_EXAMPLES = {
    "Llama 3.2 1B": (16, 2048, 32, 8, 64, 8192, 128256),
    "Llama 3.2 3B": (28, 3072, 24, 8, 128, 8192, 128256),
    "Llama 3.1 8B": (32, 4096, 32, 8, 128, 14336, 128256),
    "Qwen 2.5 14B": (48, 5120, 40, 8, 128, 13824, 152064),
}
_EXAMPLE_BITS = {"Q4_K_M": 4.85, "Q5_K_M": 5.7, "Q8_0": 8.5}  # per weight, whole files
_EXAMPLE_CONTEXT = 8192


_ENGINE_NAMES: tuple[EngineName, ...] = ("llama-cpp-python", "xllamacpp")
_MISSING: dict[EngineName, str] = {
    "llama-cpp-python": f"scores, importance and measured speed need it: {COMPRESS_EXTRA} (a C++ compiler)",
    "xllamacpp": "it runs models where no compiler is: pip install xllamacpp",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` is what to do about it, empty where all is well."""

    what: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Prospect:
    """Whether a well-known model fits here, and how."""

    model: str
    type: str
    fits: bool
    how: str


def examine() -> list[Finding]:
    """Everything that decides how models run here."""
    gpus = installed_gpus()
    return [
        Finding("edgepack", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        *_engine_findings(),
        *_cpu_findings(),
        *_gpu_findings(gpus),
        _memory_finding(),
        _disk_finding(),
    ]


def _engine_findings() -> list[Finding]:
    """Both engines: which is here, what it was built for, what it cannot do."""
    findings = []
    for name in _ENGINE_NAMES:
        if not installed(name):
            findings.append(Finding("engine", f"{name}: not installed", _MISSING[name]))
            continue
        facts = choose_engine(name).facts()
        what = f"{name} {facts.version} ({facts.build}); computes on {', '.join(facts.devices)}"
        advice = list(facts.limits)
        if has_amx(name):
            advice.append(f"its AMX kernels are not run, so that nothing is repacked either: {_PLAIN_BUILD}")
        findings.append(Finding("engine", what, "; ".join(advice)))
    return findings


def _cpu_findings() -> list[Finding]:
    used = cpu_features()
    have = _cpu_flags()
    missing = [flag for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX512"), ("fma", "FMA"), ("f16c", "F16C"))
               if flag in have and name not in used]  # fmt: skip
    advice = ""
    if missing:
        advice = (
            f"the CPU also has {', '.join(missing)}, the engine does not use it: a llama-cpp-python built here does"
        )
    features = " ".join(sorted(used & {"AVX", "AVX2", "AVX512", "FMA", "F16C", "NEON", "DOTPROD", "MATMUL_INT8"}))
    return [
        Finding(
            "CPU", f"{this_cpu().name}, {physical_cores()} physical cores, {free_cores()} free now; {features}", advice
        )
    ]


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return set()
    match = re.search(r"^flags\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return set(match[1].split()) if match else set()


def _gpu_findings(gpus: list[Device]) -> list[Finding]:
    offloads = supports_gpu()
    if not gpus:
        metal = sys.platform == "darwin" and offloads
        return [Finding("GPU", "Apple GPU through Metal" if metal else "none found (nvidia-smi lists none)")]
    return [gpu_finding(gpu, offloads=offloads) for gpu in gpus]


def gpu_finding(gpu: Device, *, offloads: bool) -> Finding:
    """What a card means for this build."""
    free = f", {gpu.free / 2**30:.1f} GiB free" if gpu.free is not None else ""
    found = f"{gpu.name}, {gpu.memory / 2**30:.1f} GiB{free}, compute capability {gpu.compute_capability}"
    if gpu.lacks_tensor_cores:
        state = "the card has no tensor cores: the FORCE_MMQ build is faster" if offloads else "not used by this build"
        return Finding("GPU", found, f"{state}: {_MMQ_BUILD}")
    return Finding("GPU", found, "" if offloads else f"not used by this build: {_CUDA_BUILD}")


def _memory_finding() -> Finding:
    cpu = this_cpu()
    free = (cpu.free or 0) / 2**30
    return Finding("memory", f"{cpu.memory / 2**30:.1f} GiB, {free:.1f} GiB free")


def _disk_finding() -> Finding:
    folder = cache_folder()
    usage = shutil.disk_usage(folder)
    models = folder / "models"
    used = sum(path.stat().st_size for path in models.glob("*.gguf")) if models.is_dir() else 0
    text = f"{folder}: {used / 1e9:.1f} GB of models, {usage.free / 1e9:.0f} GB free"
    return Finding("cache", text, "" if usage.free > 10e9 else "less than 10 GB free: `edgepack cache prune`")


def prospects(device: Device) -> list[Prospect]:
    """How well-known models would fit on `device`."""
    return [_prospect(name, kind, bits, device) for name in _EXAMPLES for kind, bits in _EXAMPLE_BITS.items()]


def _prospect(name: str, kind: str, bits: float, device: Device) -> Prospect:
    shape = example_shape(name, bits)
    fit = Fitter(shape, device, FitWish(_EXAMPLE_CONTEXT)).choose()
    if not fit.fits:
        return Prospect(name, kind, fits=False, how=fit.reason)
    layers, all_layers = fit.request.n_gpu_layers, len(shape.layers) + 1
    where = f"{layers} of {all_layers} layers on the GPU" if device.is_gpu else "on the CPU"
    speed = f", about {fit.tokens_per_second:.0f} tokens/s" if fit.tokens_per_second else ""
    return Prospect(name, kind, fits=True, how=f"{where}, {fit.needed / 1e9:.1f} GB{speed}")


def example_shape(name: str, bits: float) -> ModelShape:
    """The shape of a well-known Llama-like model with so many bits per weight."""
    count, width, heads, kv_heads, head, inner, vocabulary = _EXAMPLES[name]
    weights = width * head * (2 * heads + 2 * kv_heads) + 3 * width * inner
    nbytes = round(weights * bits / 8)
    layer = LayerShape(
        nbytes, nbytes, heads * head, kv_heads * head, kv_heads * head, heads, inner,
        windowed=False, fused_qkv=False, gate=True, double_up=False, post_norm=False,
    )  # fmt: skip
    matrix = round(vocabulary * width * bits / 8)
    return ModelShape(
        architecture="llama", layers=(layer,) * count, width=width, n_vocab=vocabulary, n_ctx_train=131072, window=0,
        head_k=head, head_v=head, experts=0, experts_used=0, input_bytes=matrix, output_bytes=matrix, tied=False,
        layer_norm=False, position_embedding=False, scaled_logits=False,
    )  # fmt: skip
