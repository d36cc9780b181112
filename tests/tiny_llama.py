"""Tiny random Llamas as transformers writes them, and what transformers loads of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from edgepack.export.checkpoint import open_checkpoint
from edgepack.model import read_tensor

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import Checkpoint

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "vocab_size": 40, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_tiny(folder: Path, **settings: Any) -> Path:
    """A random Llama in float32."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**{**SIZES, **settings})
    transformers.LlamaForCausalLM(config).float().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def change(path: Path, **settings: Any) -> None:
    """Other values in a JSON object."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def loaded(folder: Path) -> dict[str, np.ndarray]:
    """What transformers loads."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def read(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """What edgepack reads; a tied head under its own name too."""
    found = {name: read_tensor(checkpoint.tensors, name) for name in checkpoint.tensors.specs}
    if checkpoint.config.get("tie_word_embeddings"):
        found[HEAD] = found[EMBEDDING]
    return found


def agrees(folder: Path) -> Checkpoint:
    """Assert that edgepack reads the tensors that transformers loads; gives the checkpoint."""
    checkpoint = open_checkpoint(folder)
    ours, theirs = read(checkpoint), loaded(folder)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
    return checkpoint
