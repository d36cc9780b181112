"""A checkpoint's folder rewritten as one with latent attention, trained where that is asked for.

How it is rewritten is left to `latent`, how trained to `training`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

from edgepack.errors import CheckpointError
from edgepack.files.folders import folder_output
from edgepack.progress import silent
from edgepack.quant.attention.judging import answers
from edgepack.quant.attention.latent import latent_bytes_per_token, to_latent_attention
from edgepack.quant.attention.training import distil

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgepack.progress import Progress
    from edgepack.quant.attention.latent import LatentSettings
    from edgepack.quant.attention.training import Trained, TrainingSettings

_TAKEN_OVER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json",
    "merges.txt", "added_tokens.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class LatentCheckpoint:
    """What was written.

    Attributes:
        folder: of the checkpoint.
        bytes_per_token: of llama.cpp's cache, 16 bits an element.
        source_bytes_per_token: of the source's.
        trained: what training came to; None without.
    """

    folder: Path
    bytes_per_token: int
    source_bytes_per_token: int
    trained: Trained | None


def attention_parameters(model: Any) -> Iterator[torch.nn.Parameter]:
    """The parameters of a model's attention, without the norms in front of it."""
    for name, parameter in model.named_parameters():
        if ".self_attn." in name:
            yield parameter


def write_latent_checkpoint(
    source: Path,
    out: Path,
    tokens: torch.Tensor,
    settings: LatentSettings,
    training: TrainingSettings | None = None,
    progress: Progress = silent,
) -> LatentCheckpoint:
    """Rewrite the attention of a Llama's folder; weights are written in float32.

    Args:
        source: a checkpoint's folder.
        out: a new folder; it appears when all is written.
        tokens: [sequences, length] to calibrate on, and to learn from.
        settings: the shape of the attention.
        training: of the attention's parameters on the source's logits; None for none.
        progress: told of training.

    Raises:
        CheckpointError: transformers cannot load `source`.
        UnsupportedModelError: as `to_latent_attention`, as the others of it.
    """
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source}: transformers cannot load it: {str(error).splitlines()[0]}") from error
    model.eval().requires_grad_(False)
    made = to_latent_attention(model, tokens, settings).requires_grad_(False)
    trained = None
    if training is not None:
        parameters = [each.requires_grad_(True) for each in attention_parameters(made)]
        trained = distil(answers(model), answers(made), parameters, tokens, training, progress)
    with folder_output(out, inputs=(source,)) as scratch:
        made.save_pretrained(scratch, save_original_format=True)
        for name in _TAKEN_OVER:
            if (source / name).is_file():
                shutil.copyfile(source / name, scratch / name)
    heads, layers = model.config.num_key_value_heads, model.config.num_hidden_layers
    head = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    return LatentCheckpoint(out, latent_bytes_per_token(made.config), 4 * layers * heads * head, trained)
