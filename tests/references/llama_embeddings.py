"""What llama.cpp gives for a text in place of logits: an embedding of every token, one pooled, or scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from edgepack.edge.llama.log import runtime_log

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_NONE, _UNSPECIFIED, _RANK = 0, -1, 4  # enum llama_pooling_type


def llama_token_embeddings(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The last hidden state of every token, whatever pooling the file names: [tokens, d]."""
    return _evaluated(path, ids, _NONE)


def llama_pooled(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the pooling that the file names makes of the text: its embedding [d], or scores [labels].

    Raises:
        ValueError: the file names none.
    """
    return _evaluated(path, ids, _UNSPECIFIED)


def _evaluated(path: Path, ids: NDArray[np.int64], pooling: int) -> NDArray[np.float32]:
    runtime_log()  # keeps llama.cpp's lines off the terminal
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise ValueError(f"llama.cpp refuses {path}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    params.embeddings, params.pooling_type = True, pooling
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    context = llama_cpp.llama_init_from_model(model, params)
    try:
        return _read(model, context, ids)
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def _read(model: object, context: object, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    if llama_cpp.llama_decode(context, batch):
        raise ValueError("llama.cpp could not evaluate the text")
    kind, width = llama_cpp.llama_pooling_type(context), llama_cpp.llama_model_n_embd(model)
    if kind == _NONE:
        rows = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(context), (len(ids), width))
    else:
        width = llama_cpp.llama_model_n_cls_out(model) if kind == _RANK else width
        rows = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, 0), (width,))
    found = rows.astype(np.float32, copy=True)
    llama_cpp.llama_batch_free(batch)
    return found
