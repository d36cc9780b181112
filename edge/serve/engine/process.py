"""The engine's own process: llama.cpp's server of xllamacpp on a private socket, until its input ends.

It reads one line of settings from its input, writes one line when it is ready (or why it cannot be), and dies with
its parent: the end of the input is the parent's end. Only who knows the secret may ask it; watching it is `watch`'s.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from edgepack.edge.serve.engine.settings import EngineSettings, from_json

if TYPE_CHECKING:
    from typing import IO

# Errors only: lines of information tell of requests.
_VERBOSITY = 1
_HTTP_SECONDS = 24 * 3600  # the front closes what it no longer wants; a long prompt is no reason to
_SPARE_HTTP_THREADS = 8
_LOG_SECONDS = 0.3  # llama.cpp writes its log, which has the reason, from a thread of its own
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def parameters(settings: EngineSettings, address: str, secret: str) -> Any:
    """`CommonParams` of `settings`.

    Args:
        settings: how the model is opened.
        address: path of a socket to make, or `127.0.0.1` for a free port.
        secret: what requests must bring as their key.
    """
    import xllamacpp

    values = xllamacpp.CommonParams()
    _set_model(values, settings)
    _set_context(values, settings)
    values.hostnames = [address]
    values.port = 0
    values.api_keys = [secret]
    values.cors_origins = ""  # no browser ever speaks to it
    values.n_threads_http = settings.slots + _SPARE_HTTP_THREADS
    values.timeout_read = values.timeout_write = _HTTP_SECONDS
    values.ui = False
    values.endpoint_slots = False
    values.offline = True
    values.verbosity = _VERBOSITY
    return values


def _set_model(values: Any, settings: EngineSettings) -> None:
    import xllamacpp

    values.model.path = settings.model
    values.model_alias = {settings.name}
    values.n_gpu_layers = settings.n_gpu_layers
    values.fit_params = False  # `edge.fit` has chosen
    values.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in settings.adapters]
    values.chat_template = settings.chat_template
    values.use_jinja = settings.jinja
    if settings.mmproj:
        values.mmproj.path = settings.mmproj


def _set_context(values: Any, settings: EngineSettings) -> None:
    import xllamacpp

    values.n_parallel = settings.slots
    values.n_ctx = settings.n_ctx * settings.slots
    values.n_batch = values.n_ubatch = settings.n_batch
    values.cache_ram_mib = 0  # prompts stay in the slots' own context; copies of them would be memory nobody counted
    values.cache_type_k = xllamacpp.ggml_type(settings.kv_type_k)
    values.cache_type_v = xllamacpp.ggml_type(settings.kv_type_v)
    values.flash_attn_type = xllamacpp.llama_flash_attn_type(settings.flash_attention)
    if settings.context_extension != 1.0:
        values.rope_freq_scale = 1 / settings.context_extension
    for cpu in (values.cpuparams, values.cpuparams_batch):
        cpu.n_threads = settings.threads or -1
        cpu.poll = settings.poll
    if settings.task != "text":
        values.embedding = True
        values.pooling_type = xllamacpp.llama_pooling_type(settings.pooling)


def _private_output() -> IO[str]:
    """The pipe to the parent; whatever native code prints goes to the log instead."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


def _die_with_parent() -> None:
    """On Linux at once, even while a model is being loaded; elsewhere when the input is next read."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _no_core_dump() -> None:
    """A crash must not write gigabytes of weights to the disk."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Open the model, say where it listens, and wait for the parent's end."""
    output = _private_output()
    _die_with_parent()
    _no_core_dump()
    os.environ["GGML_NO_BACKTRACE"] = "1"
    settings, more = from_json(sys.stdin.readline())
    try:
        import xllamacpp

        server = xllamacpp.Server(parameters(settings, str(more["address"]), str(more["secret"])))
    except (ImportError, RuntimeError, ValueError) as error:
        time.sleep(_LOG_SECONDS)
        print(json.dumps({"error": str(error), "missing": isinstance(error, ImportError)}), file=output, flush=True)
        os._exit(1)
    print(json.dumps({"address": server.listening_address}), file=output, flush=True)
    sys.stdin.read()
    os._exit(0)  # nothing to save: freeing gigabytes in order would only take time


if __name__ == "__main__":
    main()
