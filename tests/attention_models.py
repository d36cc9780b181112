"""Tiny models with attention of every kind that is known, and one without."""

from __future__ import annotations

from typing import Any

import torch
import transformers

_COMMON: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "intermediate_size": 48,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "num_key_value_heads": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "head_dim": 8},
    "qwen3": {**_COMMON, "head_dim": 8},
    "mistral": {**_COMMON, "head_dim": 8, "sliding_window": 8},
    "phi3": {**_COMMON, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "starcoder2": _COMMON,
    "gpt2": {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 64, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    },
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 64, "state_size": 4},
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64},
}  # fmt: skip


def tiny(family: str, **settings: Any) -> Any:
    """A model with weights large enough that attention chooses, in float32."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(family, **{**FAMILIES[family], **settings})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.2 * torch.randn_like(parameter))
    return model


def some_tokens(sequences: int = 6, length: int = 40, seed: int = 5) -> torch.Tensor:
    """Random tokens [sequences, length], none of them special."""
    return torch.randint(3, 64, (sequences, length), generator=torch.Generator().manual_seed(seed))
