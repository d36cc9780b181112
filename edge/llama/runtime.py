"""llama-cpp-python as an engine, and the one that gives logits: token ids in, logits, tokens or embeddings out.

It knows nothing of installing, of choosing what fits, of chat templates and of terminals.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.llama.context import Context
from edgepack.edge.llama.engine import StoppedError, common_prefix
from edgepack.edge.llama.generation import PreparedPrompt, continued
from edgepack.edge.llama.handles import open_context, open_model
from edgepack.edge.llama.interrupt import AbortFlag
from edgepack.edge.llama.log import runtime_log
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.edge.llama.sampling import SamplerChain
from edgepack.edge.llama.vocabulary import Vocabulary
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

    from edgepack.edge.llama.engine import GeneratedToken


class LoadedModel:
    """A GGUF in memory with one context; not thread-safe. Use it in a `with` block or call `close`.

    Tokens that were evaluated stay in the KV cache: `generate` evaluates only what differs from them.

    Args:
        path: a plain GGUF that has been checked (`edge.llama.check`).
        options: how to open it.
        abort: ends opening, and later what is being computed.
        beside: another model of the same file, which must be closed after this one: its weights are shared.

    Raises:
        StoppedError: `abort` was set meanwhile.
        ModelRuntimeError: llama.cpp refuses the file, an adapter or the options; the text quotes its log.
    """

    def __init__(
        self,
        path: Path,
        options: RuntimeOptions | None = None,
        abort: AbortFlag | None = None,
        *,
        beside: LoadedModel | None = None,
    ) -> None:
        from llama_cpp import llama_cpp as c

        self._c = c
        self.path = path
        self.options = options or RuntimeOptions()
        self._context = Context(path)
        self._model: Any = None
        self._shares_weights = beside is not None
        self.abort = AbortFlag() if abort is None else abort
        with runtime_log().recording() as log:
            try:
                if beside is None:
                    self._model, self._adapters = open_model(path, self.options, self.abort)
                else:
                    self._model, self._adapters = beside._model, beside._adapters  # noqa: SLF001
                self._context.pointer = open_context(path, self._model, self._adapters, self.options, self.abort)
            except BaseException:
                self.close()
                raise
        self.load_log = log.text
        self.vocabulary = Vocabulary(c.llama_model_get_vocab(self._model))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        self._context.close()
        if self._model:
            if not self._shares_weights:
                self._c.llama_model_free(self._model)  # its adapters go with it
            self._model = None

    @property
    def n_ctx(self) -> int:
        """Tokens that the KV cache holds (llama.cpp rounds what was asked for up to a multiple of 256)."""
        return self._context.size

    @property
    def n_ctx_train(self) -> int:
        """The context that the model was trained with."""
        return int(self._c.llama_model_n_ctx_train(self._model))

    @property
    def threads(self) -> int:
        """Threads that generation uses."""
        return self._context.threads

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary: the width of a row of logits."""
        return self.vocabulary.size

    @property
    def n_embd(self) -> int:
        """Width of an embedding."""
        return int(self._c.llama_model_n_embd_out(self._model))

    @property
    def n_embd_read(self) -> int:
        """Width of what may stand in place of a token's embedding, such as what was seen."""
        return int(self._c.llama_model_n_embd_inp(self._model))

    @property
    def pointer(self) -> Any:
        """`llama_model *`, for the library that opens a projector beside it (`image`)."""
        return self._model

    @property
    def context(self) -> Any:
        """`llama_context *`, likewise."""
        return self._context.pointer

    @property
    def bos_text(self) -> str:
        """The spelling of the token that begins a text; empty where there is none."""
        return self.vocabulary.text(self.vocabulary.bos)

    @property
    def n_evaluated(self) -> int:
        """Tokens in the KV cache."""
        return len(self._context.tokens)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            text: any text.
            add_special: put BOS (and EOS) where the vocabulary asks for them.
            parse_special: read `<|...|>` and their like as control tokens, not as text.
        """
        return self.vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            tokens: any ids of the vocabulary.
            special: print control tokens, which are silent otherwise.
        """
        if len(tokens):
            self._check_range(np.asarray(tokens, dtype=np.int64))
        return b"".join(self.vocabulary.piece(token, special=special) for token in tokens).decode("utf-8", "replace")

    def clear(self) -> None:
        """Forget every evaluated token."""
        self._context.clear()

    def logits(self, token_ids: Sequence[int] | NDArray[np.integer[Any]], first: int = 0) -> NDArray[np.float32]:
        """Teacher-forced logits; the KV cache is cleared before.

        Args:
            token_ids: 1 to `n_ctx` ids, evaluated from position 0 as they stand (no BOS is added).
            first: the first position whose logits are wanted; those before it are not even computed.

        Returns:
            float32, shape [len(token_ids) - first, n_vocab]; row i predicts token first + i + 1.

        Raises:
            UsageError: no token, an id outside the vocabulary, or more than `n_ctx` tokens.
        """
        return np.concatenate(list(self.iter_logits(token_ids, first)))

    def iter_logits(
        self, token_ids: Sequence[int] | NDArray[np.integer[Any]], first: int = 0
    ) -> Iterator[NDArray[np.float32]]:
        """As `logits`, in chunks of at most `n_batch` rows, so that memory stays bounded."""
        if 0 < self.options.max_outputs < self.options.n_batch:
            raise UsageError(f"logits: the model was opened with max_outputs = {self.options.max_outputs}")
        ids = self._checked_ids(token_ids)
        self.clear()
        for start in range(0, len(ids), self._context.batch):
            chunk = ids[start : start + self._context.batch]
            wanted = (np.arange(start, start + len(chunk)) >= first).astype(np.int8)
            self._context.evaluate(chunk, wanted)
            if (n_rows := int(wanted.sum())) == 0:
                continue
            rows = self._context.logits(n_rows, self.n_vocab)
            yield rows.astype(np.float32, copy=True)  # llama.cpp overwrites its buffer in the next call

    def evaluate(self, token_ids: Sequence[int]) -> int:
        """Bring the KV cache to exactly `token_ids`, keeping the longest common beginning.

        The last token is always evaluated anew, so that its logits are ready to sample from.

        Returns:
            How many tokens had to be evaluated.

        Raises:
            UsageError: as `logits`.
        """
        ids = self._checked_ids(token_ids)
        kept = min(common_prefix(self._context.tokens, ids.tolist()), len(ids) - 1)
        kept = self._context.keep_first(kept)
        for start in range(kept, len(ids), self._context.batch):
            self._context.evaluate(ids[start : start + self._context.batch])
        return len(ids) - kept

    def next_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [n_vocab] of what follows `token_ids`; of them only what differs from the KV cache is evaluated.

        Raises:
            UsageError: as `logits`.
        """
        self.evaluate(token_ids)
        return np.array(self._context.last_logits(self.n_vocab))

    def adopt(self, token_ids: Sequence[int]) -> None:
        """Take note of what another evaluator (`image`) brought into the empty KV cache.

        Args:
            token_ids: an id for each cell, a negative one for what no token gave.
        """
        self._context.tokens = list(token_ids)

    def extend(self, token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """Evaluate tokens after those in the KV cache.

        Raises:
            UsageError: no token, or an id outside the vocabulary.
            ModelRuntimeError: they do not fit.
        """
        ids = self._checked_ids(token_ids)
        for start in range(0, len(ids), self._context.batch):
            self._context.evaluate(ids[start : start + self._context.batch])
        self._context.wait()

    def generate(
        self,
        token_ids: Sequence[int],
        sampling: SamplingOptions | None = None,
        max_tokens: int = -1,
        *,
        context_shift: bool = False,
    ) -> Generator[GeneratedToken, None, None]:
        """Continue `token_ids` until the model ends its turn, the context is full or `max_tokens` came.

        Args:
            token_ids: the prompt, 1 to `n_ctx` tokens, or one that evaluates itself.
            sampling: how tokens are chosen.
            max_tokens: not more than these; -1 is as many as the context holds.
            context_shift: when the context is full, forget the older half of what follows its first tokens and go on.

        Setting `abort` from another thread or a signal handler ends it after the token at hand.

        Yields:
            Each token as it comes; the token that ends the turn is not among them.

        Raises:
            UsageError: the prompt is longer than the context (both numbers are in the text).
        """
        chosen = sampling or SamplingOptions()
        chain = SamplerChain(self.vocabulary.pointer, chosen)
        self.abort.clear()
        try:
            if isinstance(token_ids, PreparedPrompt):
                token_ids.evaluate()
            else:
                self.evaluate(token_ids)
            last = token_ids[-chosen.repeat_last_n :] if chosen.repeat_last_n else []
            chain.remember([int(token) for token in last if token >= 0])
            yield from continued(
                self._context, self.vocabulary, chain, self.abort, max_tokens=max_tokens, context_shift=context_shift,
                chances=chosen.chances, adapt_threads=self.options.adapt_threads,
            )  # fmt: skip
        except StoppedError:
            return
        finally:
            chain.close()

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The pooled embedding of `token_ids`, float32, shape [n_embd]; the model's pooling, else the mean.

        Raises:
            UsageError: as `logits`, or the model was not opened with `embeddings`.
        """
        if not self.options.embeddings:
            raise UsageError("embeddings: the model was opened without them")
        self._evaluate_whole(token_ids)
        return self._context.pooled(self.n_embd)

    def prompt_seconds(self, token_ids: Sequence[int]) -> float:
        """Seconds that evaluating a prompt takes, from an empty KV cache; nothing is sampled."""
        return self._seconds([np.asarray(token_ids, np.int32)])

    def generation_seconds(self, token_ids: Sequence[int]) -> float:
        """Seconds that evaluating these tokens one after the other takes, from an empty KV cache."""
        return self._seconds(list(np.asarray(token_ids, np.int32).reshape(-1, 1)))

    def _seconds(self, pieces: Sequence[NDArray[np.int32]]) -> float:
        self.clear()
        started = time.perf_counter()
        for piece in pieces:
            self.extend(piece)
        return time.perf_counter() - started

    def relevance(self, query: str, document: str) -> float:
        """How well a document answers a query, as a cross-encoder sees it; the larger the better, any real number.

        Raises:
            UsageError: the model was not opened with `reranking`, or the two are longer than a batch.
        """
        if not self.options.reranking:
            raise UsageError("reranking: the model was opened without it")
        form = self._c.llama_model_chat_template(self._model, b"rerank")
        if form:
            text = form.decode("utf-8", "replace").replace("{document}", document).replace("{query}", query)
            self._evaluate_whole(self.tokenize(text, add_special=False, parse_special=True))
        else:
            self._evaluate_whole(self.vocabulary.pair(query, document))
        return self._context.rank()

    def _evaluate_whole(self, token_ids: Sequence[int]) -> None:
        """Evaluate a text at once, every position wanted, as pooling needs it."""
        ids = self._checked_ids(token_ids)
        most = self._context.physical_batch
        if len(ids) > most:
            raise UsageError(f"text has {len(ids)} tokens, embeddings take at most n_ubatch = {most}")
        self.clear()
        self._context.evaluate(ids, np.ones(len(ids), np.int8))

    def save_state(self) -> bytes:
        """The KV cache and all that goes with it, to be restored by `restore_state` into an equal context."""
        return self._context.save()

    def restore_state(self, state: bytes, token_ids: Sequence[int]) -> None:
        """Bring back a state that this model saved when it had evaluated `token_ids`.

        Raises:
            ModelRuntimeError: llama.cpp refuses it; nothing is kept then.
        """
        self._context.restore(state, token_ids)

    def _checked_ids(self, token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        ids = np.ascontiguousarray(token_ids, dtype=np.int32)
        if ids.ndim != 1 or not len(ids):
            raise UsageError(f"prompt: expected at least one token, got shape {ids.shape}")
        if len(ids) > self.n_ctx:
            raise UsageError(f"prompt has {len(ids)} tokens, the context holds {self.n_ctx}")
        self._check_range(ids)
        return ids

    def _check_range(self, ids: NDArray[np.integer[Any]]) -> None:
        if ids.min() < 0 or ids.max() >= self.n_vocab:
            raise UsageError(f"token ids: expected 0 to {self.n_vocab - 1}, got {ids.min()} to {ids.max()}")
