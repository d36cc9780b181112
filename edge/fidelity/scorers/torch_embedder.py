"""Embeds texts with a Hugging Face checkpoint in torch: the bare transformer, and the pooling that the file names.

The head that some checkpoints have for another task is never asked. Devices never import this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from edgepack.edge.fidelity.scorers.torch import checkpoint_errors
from edgepack.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MEAN, CLS, LAST = 1, 2, 3  # llama.cpp's enum llama_pooling_type; 0 is none, which `edgepack embed` takes as the mean


class TorchEmbedder:
    """A checkpoint's transformer and tokenizer in float32.

    Args:
        folder: a Hugging Face folder.
        pooling: as llama.cpp numbers it.
        dense: weights [out, in] of linear layers after the pooling, in order.
        threads: of torch.

    Raises:
        CheckpointError: transformers cannot read it.
        UnsupportedModelError: a pooling that is none of mean, first and last token.
    """

    def __init__(self, folder: Path, pooling: int, dense: Sequence[NDArray[np.float32]] = (), threads: int = 1) -> None:
        if pooling not in (0, MEAN, CLS, LAST):
            raise UnsupportedModelError(f"{folder}: pooling {pooling}: expected embeddings, not scores")
        torch.set_num_threads(threads)
        self._pooling, self._dense = pooling, [torch.from_numpy(each) for each in dense]
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with checkpoint_errors(folder):
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder), **options)
            model: Any = transformers.AutoModel.from_pretrained(str(folder), dtype=torch.float32, **options)
        self._model = model.eval()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Float32 [texts, dimensions], one text after the other."""
        return np.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> NDArray[np.float32]:
        ids = torch.tensor([self._tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            pooled = hidden[0] if self._pooling == CLS else hidden[-1] if self._pooling == LAST else hidden.mean(0)
            for weight in self._dense:
                pooled = weight @ pooled
        found: NDArray[np.float32] = pooled.numpy()
        return found
