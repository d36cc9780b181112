"""Lets llama.cpp open a file that nobody has opened yet, in a process of its own: should it abort, only this one ends.

Argument: the file. No weight is read: the vocabulary is loaded, the graph is planned, a text is cut into tokens and
every token is spelt. `loads` starts it and judges how it ended; it imports nothing of edgepack.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from importlib.util import find_spec
from typing import Any

_CPU_SECONDS = 20
_TEXT = "Hello wörld, 1 < 2!\n\t\x00 <s></s><|im_start|> 漢字 🙂".encode()
_LOAD_MODE_NONE = 0  # enum llama_load_mode
_CONTEXT = 64


def _limited() -> None:
    """No core dump, and an end to loops without one."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))


def _tokenise(c: Any, vocabulary: Any) -> None:
    """Cut a text with and without the tokens that are added, then spell every token."""
    room = (c.llama_token * 4096)()
    for special in (True, False):
        c.llama_tokenize(vocabulary, _TEXT, len(_TEXT), room, len(room), special, special)
    piece = ctypes.create_string_buffer(256)
    for token in range(c.llama_vocab_n_tokens(vocabulary)):
        c.llama_token_to_piece(vocabulary, token, piece, len(piece), 0, True)


def _with_server_engine(path: str) -> int:
    """The same in xllamacpp's engine, which answers to nobody here; 0 where it survives.

    The process ends while the engine stands: its destructor waits for a loop, for ever where that has not begun.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.no_extra_bufts, parameters.n_gpu_layers = path, True, 0  # mapped, not read
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = _CONTEXT
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    for name in ("warmup", "fit_params", "ui", "endpoint_slots"):
        setattr(parameters, name, False)
    with contextlib.suppress(RuntimeError):  # it does not take the file
        _kept = xllamacpp.Server(parameters)
        os._exit(0)
    return 0


def main(path: str) -> int:
    """Open the file; 0 where llama.cpp survives it, whether it takes the file or not."""
    _limited()
    os.environ["GGML_NO_BACKTRACE"] = "1"
    if find_spec("llama_cpp") is None:
        return _with_server_engine(path)
    from llama_cpp import llama_cpp as c

    c.llama_backend_init()
    parameters = c.llama_model_default_params()
    parameters.n_gpu_layers, parameters.no_alloc, parameters.load_mode = 0, True, _LOAD_MODE_NONE
    model = c.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        return 0
    _tokenise(c, c.llama_model_get_vocab(model))
    options = c.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = _CONTEXT, _CONTEXT, _CONTEXT
    options.n_threads = options.n_threads_batch = 1
    c.llama_init_from_model(model, options)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)  # what llama.cpp made needs no tidying up
