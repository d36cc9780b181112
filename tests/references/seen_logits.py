"""Logits behind an image as transformers computes them, from the ids and embeddings that llama.cpp's mtmd gives.

What the tower sees is another oracle's (`tiny_projectors`): here it is the model that reads it, at which positions, with
which mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def logits_behind(
    model: Any, ids: Sequence[int], seen: NDArray[np.float32], grid: tuple[int, int] | None
) -> NDArray[np.float64]:
    """Logits of the last position.

    Args:
        model: in float64.
        ids: of the prompt; negative where an image's token stands.
        seen: [tokens of images, width], or several widths beside each other where deeper layers are fed too.
        grid: rows and columns of the image's tokens, where positions have three parts.
    """
    known = torch.tensor(np.maximum(ids, 0))
    places = torch.tensor(np.array(ids) < 0)
    width = model.get_input_embeddings().weight.shape[1]
    parts = torch.tensor(seen).double().split(width, dim=1)
    more: dict[str, Any] = {}
    if grid is not None:
        more["position_ids"] = _positions(ids, *grid)
    if len(parts) > 1:
        more |= {"visual_pos_masks": places[None], "deepstack_visual_embeds": list(parts[1:])}
    with torch.no_grad():
        embedded = model.get_input_embeddings()(known)
        embedded[places] = parts[0]
        if model.config.model_type == "gemma3":  # the whole model alone knows that an image's tokens see one another
            kinds = places.long()[None]
            found = model(inputs_embeds=embedded[None], token_type_ids=kinds, attention_mask=torch.ones_like(kinds))
            logits = found.logits[0, -1]
        else:
            reader = getattr(model.model, "language_model", None) or model.model.text_model
            logits = model.lm_head(reader(inputs_embeds=embedded[None], **more).last_hidden_state)[0, -1]
    result: NDArray[np.float64] = logits.numpy()
    return result


def _positions(ids: Sequence[int], rows: int, columns: int) -> torch.Tensor:
    """Time, row and column of every token (Qwen2-VL, section 2.1): what follows an image begins behind its longer side."""
    found, following, number = [], 0, 0
    for token in ids:
        if token >= 0:
            found.append((following,) * 3)
            following += 1
            continue
        found.append((following, following + number // columns, following + number % columns))
        number += 1
        if number == rows * columns:
            following += max(rows, columns)
    return torch.tensor(found).T[:, None]
