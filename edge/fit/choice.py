"""Chooses how a model is opened on a device: layers on the GPU, context, KV type, batch; never more than fits.

Memory comes from `fit_memory`, speed from `fit_speed`; nothing is loaded here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.edge.fit.memory import MemoryPlan, MemoryRequest, plan_memory
from edgepack.edge.fit.speed import device_tokens_per_second
from edgepack.edge.llama.options import kv_type, kv_types
from edgepack.errors import UsageError
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.edge.fit.devices import Device
    from edgepack.edge.fit.shape import ModelShape

_MIB = 2**20
_CUDA_CONTEXT = 300 * _MIB  # the driver's context, kernels and cuBLAS; a round figure above what cards show
_GPU_CONTEXT = 160 * _MIB  # the same for Metal and Vulkan
_PROCESS = 160 * _MIB  # Python, llama.cpp's libraries, the vocabulary
_DESKTOP = 400 * _MIB  # what a desktop keeps of a graphics card's memory; nothing where free memory was asked for
_SYSTEM = 2048 * _MIB  # what an operating system and a browser keep of a profile's main memory
_MARGIN_SHARE, _MARGIN_LEAST = 0.04, 200 * _MIB
_Q8_1_BYTES = 36 / 32  # of a value that CUDA quantises before multiplying
DEFAULT_CONTEXT = 8192
EVERYTHING = "everything fits"  # the reason of a fit for which nothing had to give
_LEAST_CONTEXT = 2048
_KV_SHOWN = ("f16", "q8_0", "q4_0")
KV_CHOICES = ("f16", "q8_0")  # q4_0 and its like cost accuracy: on request, or where it was measured (`edge.kv`)
_UBATCH_CHOICES = (512, 256, 128)
HOST_MEMORY = 16 * 1000**3  # main memory beside a GPU of a profile, unless said otherwise


@dataclass(frozen=True)
class Fit:
    """What was chosen and what it takes.

    Attributes:
        device: where.
        fits: whether anything does; the choice below is then the smallest that was tried.
        reason: why not, or what had to give.
        request: how to open the model.
        plan: memory on CPU and GPU.
        overhead: on the device, beside the plan: driver, libraries, scratch.
        available: bytes of the device that may be used, margin already taken off.
        margin: bytes that are left free in any case.
        tokens_per_second: estimated; None where nothing is known.
        largest_context: KV type → the largest context with which everything fits on the device, 0 for none.
        droppable: bytes of the plan's weights that are pages of the file, which the system may drop.
    """

    device: Device
    fits: bool
    reason: str
    request: MemoryRequest
    plan: MemoryPlan
    overhead: int
    available: int
    margin: int
    tokens_per_second: float | None
    largest_context: dict[str, int]
    droppable: int = 0

    @property
    def needed(self) -> int:
        """Bytes on the device."""
        use = self.plan.gpu if self.device.is_gpu and self.request.n_gpu_layers else self.plan.cpu
        return use.total + self.overhead


@dataclass(frozen=True)
class FitWish:
    """What the user insists on; None leaves it open.

    Attributes:
        n_ctx: tokens of context.
        kv_type: for K and V, or one of each (`q8_0/q4_0`).
        kv_choices: what is tried where no type is insisted on, the best first.
        host_memory: of the machine that a GPU stands in.
        n_outputs: rows of logits that a batch may ask for; 0 is every token of it.
        cpu_weights: llama.cpp's model buffers on this machine's CPU (`mapped_weights`). What they are above the
            tensors' own size are pages of the file that were copied and that the system may drop: they are told,
            but do not count when it is decided what fits.
        beside: bytes of what else is loaded on the device, such as a projector.
        beyond_training: allow a longer context than the model was trained with, where positions are rotations.
    """

    n_ctx: int | None = None
    kv_type: str | None = None
    host_memory: int = HOST_MEMORY
    n_outputs: int = 1
    cpu_weights: int | None = None
    beside: int = 0
    beyond_training: bool = False
    kv_choices: tuple[str, ...] = KV_CHOICES


class Fitter:
    """Tries requests on one model and device, from the best to the smallest.

    Raises:
        UsageError: the context wished for is longer than the model was trained with (and may not be), or the KV type
            is unknown or does not divide the model's heads.
    """

    def __init__(self, shape: ModelShape, device: Device, wish: FitWish | None = None) -> None:
        self.shape = shape
        self.device = device
        self.wish = wish or FitWish()
        if self.wish.kv_type is not None and not self._suits(self.wish.kv_type):
            raise UsageError(
                f"KV cache type '{self.wish.kv_type}': its blocks do not divide heads of"
                f" {shape.head_k} and {shape.head_v}"
            )
        fixed = shape.position_embedding or not self.wish.beyond_training
        if self.wish.n_ctx is not None and self.wish.n_ctx > shape.n_ctx_train and fixed:
            raise UsageError(f"context {self.wish.n_ctx}: the model was trained with {shape.n_ctx_train}")
        self.margin = max(_MARGIN_LEAST, round(device.memory * _MARGIN_SHARE))
        reserve = 0 if device.free is not None else (_DESKTOP if device.is_gpu else _SYSTEM)
        usable = device.free if device.free is not None else device.memory - (0 if device.kind == "metal" else reserve)
        self.available = max(usable - self.margin - self.wish.beside, 0)

    def choose(self) -> Fit:
        """The first request that fits, else the smallest with the reason why it does not."""
        request, fits = self.first()
        return self._fit(request, fits=fits)

    def first(self) -> tuple[MemoryRequest, bool]:
        """(the first request that fits, true), else (the smallest, false)."""
        smallest: MemoryRequest | None = None
        for request in self._requests():
            smallest = request
            if self.fits(request):
                return request, True
        assert smallest is not None
        return smallest, False

    def fits(self, request: MemoryRequest) -> bool:
        """Whether `request` leaves the margin free on the device, and on the host beside it."""
        plan = plan_memory(self.shape, request)
        if not request.n_gpu_layers:
            room = self._host_room() if self.device.is_gpu else self.available
            return plan.cpu.total + _PROCESS <= room
        return plan.gpu.total + self.overhead(request) <= self.available and plan.cpu.total <= self._host_room()

    def overhead(self, request: MemoryRequest) -> int:
        """Bytes on the device beside weights, KV cache and compute buffer."""
        if not (self.device.is_gpu and request.n_gpu_layers):
            return _PROCESS
        if self.device.kind != "cuda":
            return _GPU_CONTEXT
        widest = max(max(layer.feed_forward, layer.q) for layer in self.shape.layers)
        scratch = round(request.tokens * widest * max(self.shape.experts_used, 1) * _Q8_1_BYTES)
        if any(
            kv_type(kind).is_quantized for kind in (request.kv_type_k, request.kv_type_v)
        ):  # flash attention unpacks one layer's cache to F16
            scratch += request.cells * max(layer.k + layer.v for layer in self.shape.layers) * 2
        return _CUDA_CONTEXT + scratch

    def largest_context(self, kv: str) -> int:
        """The largest multiple of 256 tokens with which everything fits on the device; 0 for none."""
        layers = len(self.shape.layers) + 1 if self.device.is_gpu else 0
        low, high = 0, self.shape.n_ctx_train // 256
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(self._request(middle * 256, kv, 512, layers)):
                low = middle
            else:
                high = middle - 1
        return low * 256

    def _suits(self, name: str) -> bool:
        """Whether llama.cpp opens a cache of this type: its blocks divide every head."""
        k, v = map(kv_type, kv_types(name))
        return self.shape.head_k % k.block_size == 0 and self.shape.head_v % v.block_size == 0

    def _row_bytes(self, name: str) -> int:
        k, v = map(kv_type, kv_types(name))
        return sum(k.row_bytes(layer.k) + v.row_bytes(layer.v) for layer in self.shape.layers)

    def _host_room(self) -> int:
        return max(self.wish.host_memory - _SYSTEM - _PROCESS, 0)

    def _request(self, n_ctx: int, kv: str, n_ubatch: int, n_gpu_layers: int) -> MemoryRequest:
        k, v = kv_types(kv)
        return MemoryRequest(n_ctx, 512, n_ubatch, k, v, n_gpu_layers, self.wish.n_outputs)

    def _contexts(self) -> list[int]:
        if self.wish.n_ctx is not None:
            return [self.wish.n_ctx]
        best = min(self.shape.n_ctx_train, DEFAULT_CONTEXT)
        return [n for n in (best, best // 2, best // 4) if n >= min(_LEAST_CONTEXT, best)]

    def _requests(self) -> Iterator[MemoryRequest]:
        """From the best to the smallest: everything on the device, then fewer layers, then the CPU alone."""
        kinds = (self.wish.kv_type,) if self.wish.kv_type else tuple(filter(self._suits, self.wish.kv_choices))
        contexts = self._contexts()
        layers = len(self.shape.layers) + 1 if self.device.is_gpu else 0
        for n_ctx in contexts:
            for kv in kinds:
                yield from (self._request(n_ctx, kv, n_ubatch, layers) for n_ubatch in _UBATCH_CHOICES)
        if not layers:
            return
        n_ctx = contexts[len(contexts) // 2]
        for fewer in range(layers - 1, -1, -1):
            yield from (self._request(n_ctx, kv, 512, fewer) for kv in kinds)

    def _fit(self, request: MemoryRequest, *, fits: bool) -> Fit:
        plan = plan_memory(self.shape, request, self.wish.cpu_weights)
        shown = [self.wish.kv_type] if self.wish.kv_type else [*self.wish.kv_choices, *_KV_SHOWN]
        kinds = sorted(dict.fromkeys(filter(self._suits, shown)), key=self._row_bytes, reverse=True)
        return Fit(
            device=self.device,
            fits=fits,
            reason=self._reason(request, fits=fits),
            request=request,
            plan=plan,
            overhead=self.overhead(request),
            available=self.available,
            margin=self.margin,
            tokens_per_second=device_tokens_per_second(self.shape, self.device, request.n_gpu_layers) if fits else None,
            largest_context={kind: self.largest_context(kind) for kind in kinds},
            droppable=max(plan.cpu.weights - self.shape.nbytes, 0) if self.wish.cpu_weights else 0,
        )

    def _reason(self, request: MemoryRequest, *, fits: bool) -> str:
        layers = len(self.shape.layers) + 1
        if not fits:
            room = self._host_room() if self.device.is_gpu else self.available
            need = plan_memory(self.shape, request).cpu.total + _PROCESS
            return f"needs {format_size(need)} of main memory, {format_size(room)} may be used"
        full = replace(request, n_gpu_layers=layers)
        if self.device.is_gpu and request.n_gpu_layers < layers:
            need = plan_memory(self.shape, full).gpu.total + self.overhead(full)
            return (
                f"all {layers} layers would need {format_size(need)} of the GPU's {format_size(self.available)}: "
                f"{request.n_gpu_layers} are kept there, {layers - request.n_gpu_layers} stay on the CPU"
            )
        best = self._contexts()[0]
        if request.n_ctx < best:
            return f"a context of {best} would not fit"
        if request.kv_type != (self.wish.kv_type or KV_CHOICES[0]):
            return f"the KV cache is kept as {request.kv_type}, as {KV_CHOICES[0]} it would not fit"
        return EVERYTHING
