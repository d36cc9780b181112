"""Tokens per second from bytes moved per token and bandwidth; measuring bandwidth is `fit_probe`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.edge.fit.devices import Device
    from edgepack.edge.fit.probe import CpuProbe
    from edgepack.edge.fit.shape import ModelShape

# Share of the data sheet's bandwidth that llama.cpp's generation reaches. CUDA: from the tg128 column of
# github.com/ggml-org/llama.cpp/pull/4766 (RTX 3090, 936 GB/s: 7B F16 48.5 t/s is 0.70, Q4_0 121.8 t/s is 0.50;
# kernels have become faster since, and cards with less bandwidth wait less for anything else). The others are
# guesses on the low side. All of these are estimates: only `bench` on the device measures.
_EFFICIENCY = {"cuda": 0.65, "metal": 0.65, "vulkan": 0.55, "cpu": 0.65}
_GPU_LAYER_SECONDS = 25e-6  # kernel launches of one layer, about ten of 2.5 µs each
_ASSUMED_CPU_BANDWIDTH = 40e9  # of a PC beside a GPU from a data sheet: dual-channel DDR4-2666 at its real best


def device_tokens_per_second(shape: ModelShape, device: Device, n_gpu_layers: int) -> float | None:
    """Estimated speed of generation at a nearly empty context; None where the bandwidth is unknown."""
    if device.bandwidth is None:
        return None
    rate = device.bandwidth * _EFFICIENCY[device.kind]
    if not device.is_gpu:
        return rate / shape.bytes_per_token
    first_on_gpu = max(len(shape.layers) + 1 - n_gpu_layers, 0)
    on_gpu = shape.layers[first_on_gpu:]
    gpu_bytes = sum(layer.active_bytes for layer in on_gpu) + (shape.output_bytes if n_gpu_layers else 0)
    cpu_bytes = shape.bytes_per_token - gpu_bytes
    cpu_seconds = cpu_bytes / (_ASSUMED_CPU_BANDWIDTH * _EFFICIENCY["cpu"])
    return 1 / (gpu_bytes / rate + len(on_gpu) * _GPU_LAYER_SECONDS + cpu_seconds)


def probed_tokens_per_second(shape: ModelShape, probe: CpuProbe) -> float:
    """Speed of generation on this machine's CPU, at the context of `bench`'s tg128."""
    return 1 / probe.seconds_per_token(shape)
