"""Scores text with a GGUF by llama.cpp; everything about llama.cpp itself is `runtime`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.llama.check import check_generates
from edgepack.edge.llama.engines import require_logits
from edgepack.edge.llama.options import Adapter, RuntimeOptions, SamplingOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunk


class GGUFTokenizer:
    """The tokenizer inside a GGUF."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Token ids [n] of `text`, with BOS in front where the file's metadata wants it."""
        return np.array(self._model.tokenize(text), dtype=np.int32)

    def piece(self, token: int) -> str:
        """The text of one token, special ones spelled out."""
        return self._model.detokenize([token], special=True)

    @property
    def bos(self) -> int | None:
        """The token that begins every text, or None where the file's metadata wants none."""
        vocabulary = self._model.vocabulary
        return vocabulary.bos if vocabulary.adds_bos and vocabulary.bos >= 0 else None


class GGUFScorer:
    """A GGUF run by llama.cpp.

    Args:
        path: a plain GGUF.
        ctx: the longest chunk that will come.
        threads: 0 is every core.
        n_gpu_layers: layers on the GPU; -1 is all.
        kv_type: `f32` keeps attention in float32 too, so that what is measured is the file's; llama.cpp's own default
            `f16` adds its rounding of keys, values and (in flash attention) queries, as a device runs it.
        adapters: GGUF LoRA adapters that belong to the file.
        name: what messages and reports call it, such as the archive that it is from; by default the file's name.

    Raises:
        UnsupportedModelError: its model does not say what comes next.
        ModelRuntimeError: llama.cpp refuses the file.
    """

    def __init__(
        self,
        path: Path,
        ctx: int = 512,
        *,
        threads: int = 0,
        n_gpu_layers: int = 0,
        kv_type: str = "f32",
        adapters: tuple[Path, ...] = (),
        name: str | None = None,
    ) -> None:
        options = RuntimeOptions(
            n_ctx=ctx, n_batch=ctx, threads=threads, n_gpu_layers=n_gpu_layers,
            kv_type_k=kv_type, kv_type_v=kv_type, flash_attention="off" if kv_type == "f32" else "auto",
            adapters=tuple(Adapter(adapter) for adapter in adapters),
        )  # fmt: skip
        check_generates(read_header(path))
        require_logits("scoring a GGUF")
        self._model = LoadedModel(path, options)
        self.path, self._name = path, name or path.name
        self.tokenizer = GGUFTokenizer(self._model)

    @property
    def label(self) -> str:
        """The name of the file that was asked for."""
        return f"{self._name} (llama.cpp)"

    @property
    def vocabulary(self) -> int:
        """Width of a row of logits."""
        return self._model.n_vocab

    @property
    def context_limit(self) -> int:
        """The context that the model was trained with."""
        return self._model.n_ctx_train

    def score(self, chunk: Chunk) -> NDArray[np.float32]:
        """Logits [chunk.scored, vocabulary]."""
        return self._model.logits(chunk.tokens, chunk.first)[:-1]

    def continue_greedily(self, tokens: NDArray[np.int32], count: int) -> NDArray[np.int32]:
        """At most `count` tokens that follow `tokens` when each is the most probable one; fewer where the text ends."""
        room = min(count, self._model.n_ctx - len(tokens))
        generated = self._model.generate(tokens.tolist(), SamplingOptions(temperature=0), room) if room > 0 else ()
        return np.array([token.id for token in generated], dtype=np.int32)

    def close(self) -> None:
        """Free the model."""
        self._model.close()
