"""The one place that opens llama.cpp's model, adapters and context from options.

What is done with handles is `runtime`'s.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.build import has_amx
from edgepack.edge.llama.cpu_threads import cores_are_shared, free_cores
from edgepack.edge.llama.engine import StoppedError
from edgepack.edge.llama.interrupt import held_signals
from edgepack.edge.llama.log import runtime_log
from edgepack.edge.llama.options import kv_type
from edgepack.errors import ModelRuntimeError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.llama.interrupt import AbortFlag, HeldSignals
    from edgepack.edge.llama.options import RuntimeOptions
    from edgepack.packaging.trust.policy import TrustPolicy

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
_LOAD_MODE_NONE = 0  # enum llama_load_mode; memory mapping needs data to map
_LAZY_MODE_OFF = 0  # enum llama_lazy_mode; reading on demand needs memory mapping


def open_model(path: Path, options: RuntimeOptions, abort: AbortFlag | None = None) -> tuple[Any, list[Any]]:
    """A `llama_model *` and its adapters; the caller frees the model, the adapters go with it.

    Args:
        path: a GGUF, or an archive, whose model is then decoded straight into memory.
        options: how to open it.
        abort: ends reading.

    Raises:
        StoppedError: `abort` was set meanwhile.
        ModelRuntimeError: llama.cpp refuses the file or an adapter.
        ArchiveError, IntegrityError: the archive is not sound.
    """
    from llama_cpp import llama_cpp as c

    from edgepack.packaging.archive import is_archive

    _start_backend()
    parameters = c.llama_model_default_params()
    parameters.n_gpu_layers = options.n_gpu_layers
    parameters.use_extra_bufts = not has_amx("llama-cpp-python")
    if options.simulated:
        parameters.no_alloc = True
        parameters.load_mode = _LOAD_MODE_NONE
    go_on = c.llama_progress_callback(lambda _progress, _user_data: not abort)
    if abort is not None:
        parameters.progress_callback = go_on
    with held_signals(abort) as held, runtime_log().recording() as log:
        if is_archive(path):
            model = _load_from_archive(path, options.trust, parameters, held)
        else:
            model = c.llama_model_load_from_file(str(path).encode(), parameters)
    if not model and abort:
        raise StoppedError(f"{path}: stopped while the model was being loaded")
    if not model:
        raise ModelRuntimeError(f"{path}: llama.cpp refuses it: {log.last_errors() or 'no reason given'}")
    try:
        return model, [_open_adapter(model, adapter.path) for adapter in options.adapters]
    except BaseException:
        c.llama_model_free(model)
        raise


def _load_from_archive(path: Path, trust: TrustPolicy | None, parameters: Any, held: HeldSignals) -> Any:
    """A `llama_model *`, or nothing where llama.cpp refuses it; every chunk is verified before llama.cpp sees it.

    llama.cpp has a function for tensors out of a callback too (`llama_model_init_from_user`), but that one makes every
    optional tensor of an architecture whether the model has it or not: a second output matrix, biases, scales.
    """
    from llama_cpp import llama_cpp as c

    from edgepack.edge.llama.virtual_file import virtual_file
    from edgepack.packaging.archive import open_archive
    from edgepack.packaging.restore.member_reader import MemberReader

    parameters.load_mode = _LOAD_MODE_NONE
    parameters.lazy_mode = _LAZY_MODE_OFF
    with open_archive(path, trust) as archive, closing(MemberReader(archive, archive.main)) as reader:
        with virtual_file(reader, held.__bool__) as file:
            model = c.llama_model_load_from_file_ptr(file.pointer, parameters)
        if file.problem is not None:
            if model:
                c.llama_model_free(model)
            raise file.problem
    return model


def _start_backend() -> None:
    if cores_are_shared():  # OpenMP reads it when llama.cpp is loaded: a thread that waits sleeps instead of polling
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from llama_cpp import llama_cpp as c

    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # should llama.cpp abort, one line is enough
    c.llama_backend_init()


def _open_adapter(model: Any, path: Path) -> Any:
    from llama_cpp import llama_cpp as c

    with held_signals(), runtime_log().recording() as log:
        adapter = c.llama_adapter_lora_init(model, str(path).encode())
    if not adapter:
        raise ModelRuntimeError(f"{path}: llama.cpp refuses the adapter: {log.last_errors() or 'no reason given'}")
    return adapter


def open_context(path: Path, model: Any, adapters: list[Any], options: RuntimeOptions, abort: AbortFlag) -> Any:
    """A `llama_context *` of `model` with the adapters applied; the caller frees it.

    Raises:
        ModelRuntimeError: llama.cpp refuses the options or memory ran out.
        UsageError: an option is out of range.
    """
    from llama_cpp import llama_cpp as c

    if options.n_batch < 1 or options.n_ctx < 0:
        raise UsageError(f"expected n_batch >= 1 and n_ctx >= 0, got {options.n_batch} and {options.n_ctx}")
    parameters = context_parameters(options)
    abort.install(parameters)
    with held_signals(), runtime_log().recording() as log:
        context = c.llama_init_from_model(model, parameters)
    if not context:
        raise ModelRuntimeError(f"{path}: llama.cpp cannot open a context: {log.last_errors() or 'no reason given'}")
    try:
        _apply_adapters(path, context, adapters, options)
    except BaseException:
        c.llama_free(context)
        raise
    return context


def _apply_adapters(path: Path, context: Any, adapters: list[Any], options: RuntimeOptions) -> None:
    from llama_cpp import llama_cpp as c

    if not adapters:
        return
    pointers = (c.llama_adapter_lora_p_ctypes * len(adapters))(*adapters)
    scales = (ctypes.c_float * len(adapters))(*(adapter.scale for adapter in options.adapters))
    if c.llama_set_adapters_lora(context, pointers, len(adapters), scales):
        raise ModelRuntimeError(f"{path}: llama.cpp cannot apply the adapters")


def context_parameters(options: RuntimeOptions) -> Any:
    """`llama_context_params` of `options`; free cores stand where they leave the number of threads open."""
    from llama_cpp import llama_cpp as c

    threads = options.threads or free_cores()

    parameters = c.llama_context_default_params()
    parameters.n_ctx = options.n_ctx
    parameters.n_batch = options.n_batch
    parameters.n_ubatch = min(options.n_ubatch, options.n_batch)
    parameters.n_threads = threads
    parameters.n_threads_batch = options.threads_batch or threads
    parameters.type_k = kv_type(options.kv_type_k)
    parameters.type_v = kv_type(options.kv_type_v)
    parameters.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
    pooled = options.embeddings or options.reranking
    parameters.n_outputs_max = 0 if pooled else options.max_outputs  # pooling reads every position
    parameters.embeddings = pooled
    if options.reranking:
        parameters.pooling_type = c.LLAMA_POOLING_TYPE_RANK
    parameters.swa_full = False  # a sliding layer keeps its window only; `runtime` knows what cannot be kept then
    parameters.no_perf = True
    return parameters
