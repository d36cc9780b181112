"""What llama.cpp has opened of one file: for text, embeddings, ranking and images, each when it is first asked for."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.edge.fit.opening import runtime_options
from edgepack.edge.llama.check import check_generates
from edgepack.edge.llama.engines import open_model, with_logits
from edgepack.edge.llama.interrupt import AbortFlag
from edgepack.errors import UnsupportedModelError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.fit.opening import OpenWish
    from edgepack.edge.install.model_file import ModelFile
    from edgepack.edge.llama.engine import OpenModel
    from edgepack.edge.llama.image import Eyes
    from edgepack.edge.llama.options import RuntimeOptions

_RANK_POOLING = 4  # LLAMA_POOLING_TYPE_RANK


class Runtimes:
    """The opened forms of one model; not thread-safe.

    Args:
        source: the GGUF and what belongs to it.
        wish: what the caller insists on.
        options: how it is opened for text.
        label: names it in messages.

    Attributes:
        abort: ends what is being opened or generated.
        load_seconds: that opening has taken so far.
    """

    def __init__(self, source: ModelFile, wish: OpenWish, options: RuntimeOptions, label: str) -> None:
        self._source, self._wish, self._options, self._label = source, wish, options, label
        self.abort = AbortFlag()
        self.load_seconds = 0.0
        self._text: OpenModel | None = None
        self._eyes: Eyes | None = None
        self._embedder: OpenModel | None = None
        self._ranker: OpenModel | None = None

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        for opened in (self._eyes, self._text, self._embedder, self._ranker):
            if opened is not None:
                opened.close()
        self._eyes = self._text = self._embedder = self._ranker = None

    def _opened(self, options: RuntimeOptions) -> OpenModel:
        started = time.perf_counter()
        model = open_model(self._source.path, options, self.abort)
        self.load_seconds += time.perf_counter() - started
        return model

    def text(self) -> OpenModel:
        """For text; raises UnsupportedModelError where the model generates none."""
        if self._text is None:
            check_generates(self._source.header)
            self._text = self._opened(self._options)
        return self._text

    def embedder(self) -> OpenModel:
        """For embeddings."""
        if self._embedder is None:
            wish = replace(self._wish, embeddings=True)
            self._embedder = self._opened(runtime_options(self._source.header, wish))
        return self._embedder

    @property
    def ranks(self) -> bool:
        """Whether the model is a cross-encoder."""
        header = self._source.header
        return bool(header.get(f"{header.get(keys.ARCHITECTURE)}.pooling_type") == _RANK_POOLING)

    def ranker(self) -> OpenModel:
        """For scores of documents; raises UnsupportedModelError where the model is no cross-encoder."""
        if self._ranker is None:
            if not self.ranks:
                raise UnsupportedModelError(f"{self._label}: it is no cross-encoder, so it cannot rank documents")
            wish = replace(self._wish, reranking=True)
            self._ranker = self._opened(runtime_options(self._source.header, wish))
        return self._ranker

    def eyes(self, projector: Path) -> Eyes:
        """For images, beside the model for text."""
        if self._eyes is None:
            from edgepack.edge.llama.image import Eyes

            text = with_logits(self.text(), "images")
            started = time.perf_counter()
            self._eyes = Eyes(projector, text)
            self.load_seconds += time.perf_counter() - started
        return self._eyes
