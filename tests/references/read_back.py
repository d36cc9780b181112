"""Which tiny models are read back from their GGUFs, a fixed sample: the first of every architecture and class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from references.hybrid_models import HYBRIDS
from references.tiny_checkpoints import TinyModel
from references.tiny_decoders import DECODERS
from references.tiny_encoders import EMBEDDERS, RANKERS

from edgepack.export.rules.mapping import families
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

_EXACT = 1e-6
_OLDER = (
    TinyModel("llama-2", "Llama", {}),
    TinyModel("mixtral", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    TinyModel("qwen-2", "Qwen2", {"tie_word_embeddings": True}),
    TinyModel("phi-3", "Phi3", {}),
    TinyModel("gpt-2", "GPT2", {"tie_word_embeddings": True, "n_inner": 96}, "LMHeadModel"),
    TinyModel("gpt-neox", "GPTNeoX", {}),
    TinyModel("glm-4", "Glm4", {"head_dim": 32}),
    TinyModel("olmo-2", "Olmo2", {}),
    TinyModel("starcoder-2", "Starcoder2", {}),
)
_MODELS = (*_OLDER, *HYBRIDS, *DECODERS, *EMBEDDERS, *RANKERS)
_SLOW = {"gemma-3n", "exaone-4-32b", "llama-4-without-norms"}  # llama.cpp knows them by their many layers


def _classes() -> Iterator[TinyModel]:
    """The first model of every class that has a family."""
    seen = set()
    for tiny in _MODELS:
        name = tiny.family + tiny.head
        if name in families() and name not in seen and tiny.name not in _SLOW and _speaks(tiny):
            seen.add(name)
            yield tiny


def _speaks(tiny: TinyModel) -> bool:
    """Whether its outputs can be held against those of the class that its GGUF is read as."""
    return not tiny.head.endswith(("ForMaskedLM", "ForConditionalGeneration")) and tiny.name not in (
        "qwen-3-embedding", "qwen-2-embedding", "llama-embedding", "mistral-embedding", "qwen-3-ranker",
    )  # fmt: skip


READ_BACK = tuple(_classes())
REFUSED = tuple(tiny for tiny in DECODERS if tiny.name in ("qwen-2.5-vl", "qwen-3-vl"))


def last_values(result: Any) -> NDArray[np.float32]:
    """Logits, or the last hidden states of a model without a head."""
    values: torch.Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return values[0].float().numpy()


def tolerance(tiny: TinyModel, path: Path) -> float:
    """Nothing is lost but where a file holds exp(x) of x or a product: what recurrent states make of one rounding."""
    recurs = any(".ssm_" in info.name for info in read_header(path).tensors)
    return tiny.tolerance if recurs else _EXACT
