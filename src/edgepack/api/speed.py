"""`edgepack.fit` and `edgepack.bench`: what fits on a device and how fast it is; `edge` predicts and measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.opening import OpenOptions, adapters_of, open_file
from edgepack.api.trust import Trusted, policy_for
from edgepack.edge.fit.choice import HOST_MEMORY, Fit, FitWish
from edgepack.edge.fit.contexts import ContextFit, by_context
from edgepack.edge.fit.devices import cpu_features, find_device
from edgepack.edge.fit.measured import fit_measured, settled
from edgepack.edge.fit.memory import mapped_weights
from edgepack.edge.fit.opening import running_device, runtime_options
from edgepack.edge.fit.probe import can_probe, probe_cpu
from edgepack.edge.fit.shape import ModelShape, read_shape
from edgepack.edge.fit.speed import probed_tokens_per_second
from edgepack.edge.install.model_file import peek, projector_bytes
from edgepack.edge.llama.check import check_generates
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.api.values import FilePath, JsonObject
    from edgepack.edge.bench import BenchResult
    from edgepack.edge.llama.engine import EngineWish
    from edgepack.edge.llama.options import Adapter
    from edgepack.progress import Progress

PROMPT_TOKENS, GENERATED_TOKENS = 512, 128  # llama-bench's pp512 and tg128


@dataclass(frozen=True)
class FitMemory:
    """Bytes on the device: weights, KV cache, compute buffer, what drivers and libraries take, and their sum."""

    weights: int
    kv: int
    compute: int
    overhead: int
    total: int


@dataclass(frozen=True)
class FitResult:
    """How a model is opened on a device, and what that takes.

    Attributes:
        device: its id, such as `gtx-1660`.
        device_name: for people.
        fits: whether anything does; what follows is then the smallest that was tried.
        reason: why not, or what had to give.
        n_gpu_layers: layers on the GPU; `layers` is all of them.
        ctx: tokens of context.
        kv_type: of the KV cache.
        batch, ubatch: tokens handed over and computed at once.
        flash_attention: whether it is used.
        memory: bytes on the device.
        droppable: bytes of the weights that are pages of the file, which the system may drop.
        host_memory: bytes of main memory.
        available: bytes of the device that may be used.
        margin: bytes that are left free in any case.
        tokens_per_second: of generation, estimated or (on this CPU) measured; None where nothing is known.
        largest_ctx: KV type → the largest context with which everything fits on the device, 0 for none.
        file_bytes: of the file as it ships.
        model_bytes: of the GGUF that runs.
        layers: of the model, the output layer counted.
        ctx_train: the context that the model was trained with.
        on_gpu: whether the device is a GPU.
        contexts: how it is opened at one context after another.
        projector: bytes of what sees in an archive, loaded beside the model and taken off `available`.
        kv_kl: what the chosen KV cache costs beside `f16`, in nats a token, as the file states; None where it does not.
    """

    device: str
    device_name: str
    fits: bool
    reason: str
    n_gpu_layers: int
    ctx: int
    kv_type: str
    batch: int
    ubatch: int
    flash_attention: bool
    memory: FitMemory
    droppable: int
    host_memory: int
    available: int
    margin: int
    tokens_per_second: float | None
    largest_ctx: Mapping[str, int]
    file_bytes: int
    model_bytes: int
    layers: int
    ctx_train: int
    on_gpu: bool
    contexts: tuple[ContextFit, ...] = ()
    projector: int = 0
    kv_kl: float | None = None

    def json(self) -> JsonObject:
        """The object that `edgepack fit --json` prints."""
        return {**asdict(self), "contexts": [asdict(context) for context in self.contexts]}


def fit(
    file: FilePath,
    *,
    device: str = "auto",
    ctx: int | None = None,
    kv_type: str | None = None,
    host_memory: int | None = None,
    probe: bool = True,
    trusted: Trusted = (),
) -> FitResult:
    """Whether a model fits on a device, how to open it, and how fast it would be; nothing is loaded or installed.

    Args:
        file: a GGUF or an `.edgepack`; its header suffices.
        device: a profile such as `gtx-1660`; `auto` and `cpu` are this machine.
        ctx: tokens of context; by default up to 8192, what fits.
        kv_type: of the KV cache, such as `q8_0`, or of K and of V: `q8_0/q4_0`. `auto`, the default: `f16`; where
            that is too large, the smallest that costs little enough as the file states (`edgepack.kv`), else `q8_0`.
        host_memory: bytes of main memory beside a profile's GPU; by default 16 GB.
        probe: on this CPU, time a few layers (two seconds, once for a model), where llama-cpp-python is installed.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.

    Raises:
        UsageError: no such file, device or KV type, or the context is longer than the model's.
        UnsupportedModelError: a kind of model whose memory cannot be predicted.
        GGUFError, ArchiveError: the file is not sound.
        CheckFailedError: nobody trusted signed it.
    """
    file, where, policy = Path(file), find_device(device), policy_for(trusted)
    header, projector = peek(file, policy), projector_bytes(file, policy)
    shape = read_shape(header)
    on_cpu = where.id == "cpu"
    weights = mapped_weights(header, cpu_features()) if on_cpu else None
    wish = FitWish(ctx, settled(kv_type), host_memory or HOST_MEMORY, cpu_weights=weights, beside=projector)
    measured = fit_measured(shape, where, wish, file, header, longest=shape.n_ctx_train)
    found = measured.fit
    if on_cpu and found.fits and probe and can_probe():
        found = replace(found, tokens_per_second=probed_tokens_per_second(shape, probe_cpu(header, shape)))
    result = _fit_result(found, shape, file.stat().st_size, header.file_bytes)
    cost = None if measured.cost is None else measured.cost.kl
    return replace(result, contexts=by_context(shape, where, measured.wish), projector=projector, kv_kl=cost)


def _fit_result(fit: Fit, shape: ModelShape, file_bytes: int, model_bytes: int) -> FitResult:
    request = fit.request
    use = fit.plan.gpu if fit.device.is_gpu and request.n_gpu_layers else fit.plan.cpu
    return FitResult(
        device=fit.device.id,
        device_name=fit.device.name,
        fits=fit.fits,
        reason=fit.reason,
        n_gpu_layers=request.n_gpu_layers,
        ctx=request.n_ctx,
        kv_type=request.kv_type,
        batch=request.n_batch,
        ubatch=request.n_ubatch,
        flash_attention=request.flash_attention,
        memory=FitMemory(use.weights, use.kv, use.compute, fit.overhead, fit.needed),
        droppable=fit.droppable,
        host_memory=fit.plan.cpu.total,
        available=fit.available,
        margin=fit.margin,
        tokens_per_second=fit.tokens_per_second,
        largest_ctx=dict(fit.largest_context),
        file_bytes=file_bytes,
        model_bytes=model_bytes,
        layers=len(shape.layers) + 1,
        ctx_train=shape.n_ctx_train,
        on_gpu=fit.device.is_gpu,
    )


def bench(
    file: FilePath,
    *,
    repetitions: int = 5,
    n_prompt: int = PROMPT_TOKENS,
    n_gen: int = GENERATED_TOKENS,
    device: str = "auto",
    n_gpu_layers: int | None = None,
    kv_type: str | None = None,
    threads: int | None = None,
    adapters: Sequence[Adapter | FilePath] = (),
    own_adapters: bool = True,
    engine: EngineWish = "auto",
    verify: bool = False,
    trusted: Trusted = (),
    keep: bool = False,
    progress: Progress = silent,
) -> BenchResult:
    """Time prompt processing and generation as llama-bench does.

    Args:
        file: a GGUF or an `.edgepack`.
        repetitions: of each kind.
        n_prompt: tokens of a prompt.
        n_gen: tokens generated.
        device: as in `edgepack.load`, and so all up to `verify`.
        n_gpu_layers: layers on the GPU.
        kv_type: of the KV cache.
        threads: of the CPU.
        adapters: GGUF LoRAs to apply.
        own_adapters: apply those of the archive too.
        engine: which package runs it.
        verify: check every byte of an installed archive first.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        keep: add the result to those of this machine (`edgepack.edge.bench.earlier_result` finds it).
        progress: told of bytes that are restored.

    Raises:
        EdgepackError: as `edgepack.load`.
    """
    from edgepack.edge.bench import append_result, measure

    options = OpenOptions(
        None, device, n_gpu_layers, kv_type, threads, adapters_of(adapters), own_adapters, verify,
        engine=engine, trust=policy_for(trusted),
    )  # fmt: skip
    source, wish = open_file(file, options, progress)
    check_generates(source.header)
    opened = replace(runtime_options(source.header, wish), n_ctx=max(n_prompt, n_gen) + 1)
    result = measure(
        source.path, opened, running_device(device, engine).name, repetitions=repetitions,
        n_prompt=n_prompt, n_generate=n_gen, name=Path(file).name,
    )  # fmt: skip
    if keep:
        append_result(result)
    return result
