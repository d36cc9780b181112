"""Where a walk back over a model's blocks begins: at its logits, with labels drawn from its own predictions.

What is made of the gradients is left to `curvature` and `input_samples`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from edgepack.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgepack.quant.calibration.blocks import BlockwiseModel

_LOGITS = 1 << 25  # at a time: 128 MB in float32, and a few times that with their gradients


def refuse_shared_keys(config: Mapping[str, Any]) -> None:
    """Refuse models whose last layers read keys and values of earlier ones: blocks are run back one by one.

    Args:
        config: of config.json.

    Raises:
        UnsupportedModelError: there are such layers.
    """
    text = config.get("text_config")
    shared = (text if isinstance(text, dict) else config).get("num_kv_shared_layers")
    if shared:
        raise UnsupportedModelError(
            f"wire: {shared} layers share keys and values of earlier ones, which curvature, measured block by block,"
            " does not follow: use a gguf-* target for this model"
        )


def head_pieces(model: BlockwiseModel, last: torch.Tensor, batch: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Sequences with what enters the head of them, ready for a gradient: few at a time, since logits are large.

    The model's shell is loaded meanwhile.

    Args:
        model: gives logits.
        last: outputs of the last block, [sequences, length, width].
        batch: most sequences at a time.
    """
    vocabulary = int(model.source.specs[model.head_name].shape[0]) if model.head_name else 1
    size = max(1, min(batch, _LOGITS // (vocabulary * last.shape[1])))
    with model.shell():
        for start in range(0, len(last), size):
            rows = slice(start, min(start + size, len(last)))
            yield rows, last[rows].to(model.device).requires_grad_(True)


def gradient_at_logits(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of -log p(label) for labels drawn from the model's own distribution: p - onehot(label)."""
    flat = logits.detach().float().reshape(-1, logits.shape[-1]).softmax(-1)
    labels = draw_labels(flat, generator)
    flat[torch.arange(len(flat), device=flat.device), labels] -= 1
    return flat.reshape(logits.shape)


def draw_labels(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One label for each distribution [tokens, vocabulary], by inverting its cumulative sums: int64 [tokens]."""
    sums = probabilities.cumsum(-1)
    levels = torch.rand(len(sums), 1, generator=generator).to(sums.device) * sums[:, -1:]
    return torch.searchsorted(sums, levels, right=True)[:, 0].clamp_max(sums.shape[-1] - 1)
