"""`/v1/embeddings` on the context that also chats: it computes embeddings only while they are asked for.

llama-cpp-python's own route needs a context that computes every position's logits of every prompt; that would slow
down each chat and take a vocabulary's width of memory for each token of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ModelRuntimeError, UsageError

if TYPE_CHECKING:
    from edgepack.edge.serve.server import ServedModel


def embed(model: ServedModel, text: str) -> tuple[list[float], int]:
    """(embedding, tokens) of a text: pooled as the model was trained, else the mean over its tokens.

    Raises:
        UsageError: the text is empty or longer than a batch.
        ModelRuntimeError: llama.cpp fails.
    """
    from llama_cpp import llama_cpp as c

    llama = model.llama
    ids = np.array(llama.tokenize(text.encode(), special=True), np.int32)
    if not 0 < len(ids) <= llama.n_batch:
        raise UsageError(f"input has {len(ids)} tokens, expected 1 to {llama.n_batch}")
    wanted = np.ones(len(ids), np.int8)
    batch = c.llama_batch(n_tokens=len(ids), token=ids.ctypes.data_as(c.llama_token_p))
    batch.logits = wanted.ctypes.data_as(type(batch.logits))
    llama.reset()
    c.llama_memory_clear(c.llama_get_memory(llama.ctx), True)
    c.llama_set_embeddings(llama.ctx, True)
    try:
        status = c.llama_decode(llama.ctx, batch)
        if status:
            raise ModelRuntimeError(f"embeddings: llama.cpp failed to evaluate {len(ids)} tokens ({status})")
        width = int(c.llama_model_n_embd_out(llama.model))
        pooled = c.llama_get_embeddings_seq(llama.ctx, 0)
        rows = (1, width) if pooled else (len(ids), width)
        values = np.ctypeslib.as_array(pooled or c.llama_get_embeddings(llama.ctx), rows).mean(axis=0)
        return values.tolist(), len(ids)
    finally:
        c.llama_set_embeddings(llama.ctx, False)
        c.llama_memory_clear(c.llama_get_memory(llama.ctx), True)


def answer(model: ServedModel, request: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's answer to an embeddings request.

    Raises:
        UsageError: the input is not a text or a list of texts.
    """
    texts = request.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError("input: expected a text or a list of texts")
    if request.get("encoding_format", "float") not in ("float", "base64"):
        raise UsageError(f"encoding_format: expected float or base64, got {request['encoding_format']!r}")
    results = [embed(model, text) for text in texts]
    used = sum(tokens for _values, tokens in results)
    as_base64 = request.get("encoding_format") == "base64"
    return {
        "object": "list",
        "model": model.name,
        "data": [
            {"object": "embedding", "index": index, "embedding": _base64(values) if as_base64 else values}
            for index, (values, _tokens) in enumerate(results)
        ],
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }


def _base64(values: list[float]) -> str:
    """As the `openai` client asks for it: little-endian float32 in base64."""
    import base64

    return base64.b64encode(np.array(values, "<f4").tobytes()).decode("ascii")
