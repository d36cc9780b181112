"""Tiny random models of many families, and the bundled checkpoint, as the passes see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepack.model import Checkpoint, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

BOOKS = Path(__file__).resolve().parent.parent / "data" / "books-llama-6m"
_COMMON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
           "intermediate_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
           "pad_token_id": 0}  # fmt: skip
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
# model_type → configuration of a model small enough to check by brute force.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 8},
    "qwen2": {**_GROUPED, "tie_word_embeddings": True},
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": {**_GROUPED, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_GROUPED, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": {**_GROUPED, "num_key_value_heads": 2},
    "gpt_neox": {**_COMMON, "rotary_pct": 0.25},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 64, "bos_token_id": 1,
             "eos_token_id": 2},
    "falcon": {**_COMMON, "num_kv_heads": 4, "new_decoder_architecture": True},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2},
    "phi": _COMMON,
    "granite": _GROUPED,
    "stablelm": _GROUPED,
    "olmo2": _GROUPED,
    "starcoder2": _GROUPED,
}  # fmt: skip


@dataclass(frozen=True)
class ArrayTensors:
    """A tensor source in memory."""

    arrays: Mapping[str, NDArray[np.float32]]

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(name, array.shape, "f32") for name, array in self.arrays.items()}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        array = self.arrays[name]
        return np.array(array.reshape(-1, array.shape[-1] if array.ndim else 1)[start:stop], dtype=np.float32)


def random_model(family: str) -> Any:
    """A transformers model with random weights, normalisation weights and biases included."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if parameter.ndim == 1 and name.endswith("weight") and "gemma" not in family else 0.0
            parameter.copy_(center + 0.2 * torch.randn_like(parameter))
    return model


def checkpoint_of(model: Any) -> Checkpoint:
    """What `save_pretrained` would write, in memory."""
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    arrays = {name: p.detach().numpy().copy() for name, p in model.named_parameters() if name not in tied}
    return Checkpoint(Path("/tiny") / model.config.model_type, model.config.to_dict(), ArrayTensors(arrays))


@pytest.fixture
def tiny() -> Callable[[str], tuple[Checkpoint, Any]]:
    """family → (checkpoint, the same model in torch)."""

    def make(family: str) -> tuple[Checkpoint, Any]:
        model = random_model(family)
        return checkpoint_of(model), model

    return make


@pytest.fixture(scope="session")
def books() -> Checkpoint:
    """The bundled model."""
    from edgepack.export.checkpoint import open_checkpoint

    return open_checkpoint(BOOKS)


@pytest.fixture
def tokens() -> NDArray[np.int64]:
    """Random tokens for the tiny models: [sequences, length]."""
    return np.random.default_rng(3).integers(3, 64, size=(5, 24))


@pytest.fixture
def interrupted_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Call it: the second block that a calibration looks at is interrupted, once; it gives the blocks as they come."""
    from edgepack.quant.calibration.sweep import BlockVisit

    def begin() -> list[int]:
        observe, visited = BlockVisit.observe, list[int]()

        def interrupted(self: BlockVisit, *arguments: Any) -> Any:
            visited.append(self.block.index)
            if visited == [0, 1]:
                raise KeyboardInterrupt
            return observe(self, *arguments)

        monkeypatch.setattr(BlockVisit, "observe", interrupted)
        return visited

    return begin
