"""A layer of prediction on given embeddings: transformers' own, and llama.cpp's in a context of that type.

Which hidden states a model hands to such a layer is left to the runtimes: both get the same random ones here.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
import torch
from transformers.modeling_layers import MtpModel

from edgepack.edge.llama.log import runtime_log

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def random_layer(model: Any) -> Any:
    """transformers' layer of prediction for a model, every parameter of its own drawn at random."""
    generator = torch.Generator().manual_seed(3)
    predicting = MtpModel(model, 1).eval()
    with torch.no_grad():
        for tensor in predicting.layers.state_dict(keep_vars=True).values():
            drawn = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() < 2:
                tensor += 0.3 * drawn
            else:
                tensor.copy_(drawn * tensor.shape[-1] ** -0.5)
    return predicting


def published_tensors(predicting: Any, model: Any) -> dict[str, torch.Tensor]:
    """Its tensors as GLM 4.5 and DeepSeek 3 publish them: one layer more, with an embedding and a head."""
    layer = f"model.layers.{model.config.num_hidden_layers}."
    found = {
        layer
        + name.replace("0.post_norm.", "0.shared_head.norm.").removeprefix("0.").removeprefix("mtp_block."): tensor
        for name, tensor in predicting.layers.state_dict().items()
    }
    found[f"{layer}embed_tokens.weight"] = model.get_input_embeddings().weight
    found[f"{layer}shared_head.head.weight"] = model.get_output_embeddings().weight
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def torch_predictions(predicting: Any, ids: NDArray[np.int64], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [tokens, vocabulary] in float64, of tokens beside the hidden states of those before them."""
    with torch.no_grad():
        layer = predicting.double()
        states = torch.tensor(hidden)[None].double()
        out = layer.forward_layer(0, states, torch.arange(len(ids))[None], None, input_ids=torch.tensor(ids)[None])
        logits: NDArray[np.float32] = layer._project_to_logits(out)[0].float().numpy()
    return logits


def llama_predictions(path: Path, ids: NDArray[np.int64], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same by llama.cpp's graph of prediction, with a cache of float32."""
    runtime_log()
    params = llama_cpp.llama_model_default_params()
    params.load_mtp = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    context = llama_cpp.llama_init_from_model(model, _settings())
    batch = llama_cpp.llama_batch_init(len(ids), hidden.shape[1], 1)
    tokens = (ctypes.c_int32 * len(ids))(*map(int, ids))
    batch.token = ctypes.cast(tokens, type(batch.token))  # both tokens and hidden states, as llama.cpp drafts
    ctypes.memmove(batch.embd, hidden.ctypes.data, hidden.nbytes)
    batch.n_tokens = len(ids)
    for place in range(len(ids)):
        batch.pos[place], batch.n_seq_id[place], batch.logits[place] = place, 1, 1
        batch.seq_id[place][0] = 0
    assert llama_cpp.llama_decode(context, batch) == 0
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (size,)).copy() for i in range(len(ids))]
    batch.token = type(batch.token)()  # it is ours
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return np.stack(rows)


def _settings() -> Any:
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 256, 64, 64
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # float32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.ctx_type = llama_cpp.LLAMA_CONTEXT_TYPE_MTP
    return settings
