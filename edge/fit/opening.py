"""How a model is opened on this machine: what the user insists on, and `fit`'s choice for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.fit.choice import DEFAULT_CONTEXT, Fit, FitWish
from edgepack.edge.fit.devices import Device, find_device, installed_gpus, this_cpu
from edgepack.edge.fit.measured import fit_measured, settled
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.llama.cpu_threads import threads_now
from edgepack.edge.llama.engines import supports_gpu
from edgepack.edge.llama.options import Adapter, RuntimeOptions, kv_types
from edgepack.errors import ResourceError, UnsupportedModelError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.edge.llama.engine import EngineWish
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.packaging.trust.policy import TrustPolicy


@dataclass(frozen=True)
class OpenWish:
    """What the user insists on; None leaves it to `fit`.

    Attributes:
        device: `auto`, `cpu`, or a profile whose memory this machine is treated as having.
        n_ctx, n_gpu_layers, threads: as in `RuntimeOptions`.
        kv_type: of the KV cache, or one of K and one of V (`q8_0/q4_0`); `auto` leaves it to `fit` too.
        adapters: LoRA adapters to apply.
        embeddings: open for embeddings instead of text.
        reranking: open for scores of a cross-encoder instead.
        max_outputs, trust: as in `RuntimeOptions`.
        engine: which package runs it.
        beside: bytes of what is loaded beside the model, such as a projector.
    """

    device: str = "auto"
    n_ctx: int | None = None
    kv_type: str | None = None
    n_gpu_layers: int | None = None
    threads: int | None = None
    adapters: tuple[Adapter, ...] = ()
    embeddings: bool = False
    reranking: bool = False
    max_outputs: int = 1
    trust: TrustPolicy | None = None
    engine: EngineWish = "auto"
    beside: int = 0


def runtime_options(
    header: GGUFHeader, wish: OpenWish, note: Callable[[str], object] = lambda _text: None
) -> RuntimeOptions:
    """Options with which the model fits this machine; `note` is told where the cache was chosen by what it costs.

    Raises:
        ResourceError: nothing fits; the text says what is missing.
        UsageError: the device or KV type is unknown, or the context longer than the positions that the model has.
    """
    fit = _fit(header, wish, note)
    if fit is None:  # a kind of model whose memory cannot be predicted: llama.cpp decides
        context = min(int(header.get(f"{header.get(keys.ARCHITECTURE)}.context_length")), DEFAULT_CONTEXT)
        kv = settled(wish.kv_type)
        layers, n_ctx, n_ubatch, threads = wish.n_gpu_layers or 0, wish.n_ctx or context, 512, 0
    else:
        layers = fit.request.n_gpu_layers if wish.n_gpu_layers is None else wish.n_gpu_layers
        n_ctx, kv, n_ubatch = wish.n_ctx or fit.request.n_ctx, fit.request.kv_type, fit.request.n_ubatch
        # Asked for only where it counts: it may look at the processors for a tenth of a second.
        threads = wish.threads or threads_now(read_shape(header).bytes_per_token)
    kv_k, kv_v = kv_types(kv or "f16")
    return RuntimeOptions(
        n_ctx=n_ctx,
        n_batch=512,
        n_ubatch=n_ubatch,
        threads=wish.threads or threads,
        kv_type_k=kv_k,
        kv_type_v=kv_v,
        n_gpu_layers=layers,
        max_outputs=0 if wish.embeddings or wish.reranking else wish.max_outputs,
        embeddings=wish.embeddings,
        reranking=wish.reranking,
        engine=wish.engine,
        adapt_threads=wish.threads is None,
        adapters=wish.adapters,
        trust=wish.trust,
    )


def _fit(header: GGUFHeader, wish: OpenWish, note: Callable[[str], object]) -> Fit | None:
    device = running_device(wish.device, wish.engine)
    try:
        shape = read_shape(header)
    except UnsupportedModelError:
        return None
    n_outputs = 0 if wish.embeddings or wish.reranking else wish.max_outputs
    asked = FitWish(wish.n_ctx, settled(wish.kv_type), n_outputs=n_outputs, beyond_training=True, beside=wish.beside)
    measured = fit_measured(shape, device, asked, header.path, header, wish.adapters)
    fit = measured.fit
    if measured.problem:
        note(f"{header.path.name}: {measured.problem}")
    elif measured.cost is not None and asked.kv_type is None and fit.request.kv_type != "f16":
        note(f"the KV cache is kept as {fit.request.kv_type}: {measured.cost.told}")
    if not fit.fits and wish.n_gpu_layers is None:
        raise ResourceError(f"{header.path}: does not fit on {device.name}: {fit.reason}; try a smaller --ctx")
    return fit


def running_device(name: str, engine: EngineWish = "auto") -> Device:
    """The device to open models on: GPUs count only where the engine was built for them."""
    if name != "auto":
        return find_device(name)
    if supports_gpu(engine) and (gpus := installed_gpus()):
        return gpus[0]
    return this_cpu()
