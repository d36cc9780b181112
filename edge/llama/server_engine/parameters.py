"""How xllamacpp's server engine is started: `RuntimeOptions` in its words. Starting is left to `opened`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.build import has_amx
from edgepack.edge.llama.cpu_threads import free_cores
from edgepack.edge.llama.options import KV_TYPES, kv_type
from edgepack.errors import UsageError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.llama.options import RuntimeOptions
    from edgepack.gguf.reader import GGUFHeader

_CONTEXT_STEP = 256
_SILENT = -1  # below LOG_LEVEL_OUTPUT of common/log.h: nothing reaches the terminal


def server_parameters(path: Path, header: GGUFHeader, options: RuntimeOptions, address: str, key: str) -> Any:
    """`xllamacpp.CommonParams` for one user in this process.

    Args:
        path: the GGUF.
        header: its header.
        options: how to open it.
        address: where the engine listens: a path that ends in `.sock`, or a loopback address.
        key: what it asks of everyone who connects.

    Raises:
        UsageError: an option is out of range, or one that this engine does not have.
    """
    import xllamacpp

    _check(options)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.hostnames, parameters.port, parameters.api_keys = [address], 0, [key]
    parameters.verbosity = _SILENT
    for name in ("warmup", "fit_params", "ui", "endpoint_slots"):  # the options are chosen, and nobody looks
        setattr(parameters, name, False)
    parameters.n_parallel, parameters.cache_ram_mib = 1, 0
    parameters.ctx_shift = True  # `generate` asks for no more than fits, unless it is to shift
    _size(parameters, options)
    _place(parameters, options)
    if options.embeddings or options.reranking:
        parameters.embedding = True
        parameters.pooling_type = _pooling(header, options)
    return parameters


def _check(options: RuntimeOptions) -> None:
    if options.n_batch < 1 or options.n_ctx < 0:
        raise UsageError(f"expected n_batch >= 1 and n_ctx >= 0, got {options.n_batch} and {options.n_ctx}")
    kv_type(options.kv_type_k)
    kv_type(options.kv_type_v)
    if options.simulated:
        raise UsageError("planning memory: expected the engine llama-cpp-python, got xllamacpp")


def _size(parameters: Any, options: RuntimeOptions) -> None:
    # llama.cpp rounds a context up itself, but its server asserts things of the batch that a very small one breaks.
    parameters.n_ctx = -(-options.n_ctx // _CONTEXT_STEP) * _CONTEXT_STEP
    parameters.n_batch = options.n_batch
    parameters.n_ubatch = min(options.n_ubatch, options.n_batch)
    threads = options.threads or free_cores()
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = options.threads_batch or threads


def _place(parameters: Any, options: RuntimeOptions) -> None:
    import xllamacpp

    parameters.n_gpu_layers = options.n_gpu_layers
    parameters.no_extra_bufts = has_amx("xllamacpp")
    flash = xllamacpp.llama_flash_attn_type
    parameters.flash_attn_type = {
        "auto": flash.LLAMA_FLASH_ATTN_TYPE_AUTO,
        "on": flash.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": flash.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }[options.flash_attention]
    types = xllamacpp.ggml_type
    parameters.cache_type_k = getattr(types, f"GGML_TYPE_{KV_TYPES[options.kv_type_k].name}")
    parameters.cache_type_v = getattr(types, f"GGML_TYPE_{KV_TYPES[options.kv_type_v].name}")
    parameters.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(str(adapter.path), adapter.scale) for adapter in options.adapters
    ]


def _pooling(header: GGUFHeader, options: RuntimeOptions) -> Any:
    """Scores of a cross-encoder, the model's own pooling, or the mean where it states none."""
    import xllamacpp

    kinds = xllamacpp.llama_pooling_type
    if options.reranking:
        return kinds.LLAMA_POOLING_TYPE_RANK
    own = header.get(f"{header.get(keys.ARCHITECTURE)}.pooling_type")
    return kinds.LLAMA_POOLING_TYPE_MEAN if own in (None, 0) else kinds.LLAMA_POOLING_TYPE_UNSPECIFIED
