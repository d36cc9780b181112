"""Tiny random checkpoints of every architecture, made by transformers, with every parameter drawn at random.

Norms of one and biases of zero would hide errors, so none stays as transformers initialises it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 4096  # of the bundled tokenizer, which every checkpoint gets

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    # Large, so that a norm with another epsilon would show.
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"), 0.01),
}


@dataclass(frozen=True)
class TinyModel:
    """What decides a tiny checkpoint.

    Attributes:
        name: of the test.
        family: the first part of transformers' class names, such as `Qwen3Moe`.
        settings: keys of the configuration beside (or, as None, without) the usual sizes.
        head: the second part of the model class.
        config: the configuration's class where it is not `{family}Config`.
        fused_experts: written as transformers 5 holds them, not as they were published.
        tolerance: largest difference of logits, in standard deviations of the logits.
        as_ggml: the reference computes GELU as ggml does, where norms make much of its rounding.
    """

    name: str
    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    head: str = "ForCausalLM"
    config: str = ""
    fused_experts: bool = False
    tolerance: float = 1e-4
    as_ggml: bool = False

    def configuration(self) -> Any:
        """The configuration, as transformers completes it."""
        config_class = getattr(transformers, self.config or f"{self.family}Config")
        known = set(config_class.__dataclass_fields__) | set(config_class().to_dict())
        sizes = {key: value for key, value in SIZES.items() if key in known}
        return config_class(**(sizes | self.settings), attn_implementation="eager", experts_implementation="eager")


def random_model(tiny: TinyModel, seed: int = 0) -> Any:
    """A float32 model in which every parameter and every saved buffer is random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # what is drawn by transformers stays in part
        model = getattr(transformers, tiny.family + tiny.head)(tiny.configuration()).float().eval()
    saved = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for tensor in saved.values():
            drawn = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() < 2:
                tensor += 0.3 * drawn
            else:
                tensor.copy_(drawn * tensor.shape[-1] ** -0.5)
    model.tie_weights()
    return model


def write_checkpoint(model: Any, folder: Path, tokenizer: Path, *, fused_experts: bool = False) -> Path:
    """Save a model as transformers 5 does, with the tokenizer of another folder; gives `folder` back."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, save_original_format=not fused_experts)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


def rewrite_config(folder: Path, changes: dict[str, Any]) -> None:
    """Set keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
