"""llama-cpp-python as an engine, and the one that gives logits: token ids in, logits, tokens or embeddings out.

It knows nothing of installing, of choosing what fits, of chat templates and of terminals.
"""

from __future__ import annotations

import ctypes
import time
from codecs import getincrementaldecoder
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from edgepack.edge.llama.chances import chances_of
from edgepack.edge.llama.engine import GeneratedToken, StoppedError, common_prefix
from edgepack.edge.llama.handles import open_context, open_model
from edgepack.edge.llama.interrupt import AbortFlag
from edgepack.edge.llama.log import runtime_log
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.edge.llama.sampling import SamplerChain
from edgepack.edge.llama.thread_pace import ThreadPace
from edgepack.edge.llama.vocabulary import Vocabulary
from edgepack.errors import ModelRuntimeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

_NO_SLOT = 1  # llama_decode: the KV cache is full
_KEPT_BEGINNING = 4  # tokens that a context shift never forgets: attention leans on the first ones
_ABORTED = 2  # llama_decode: the abort callback said so


@runtime_checkable
class PreparedPrompt(Protocol):
    """A prompt that is more than token ids, such as one with images (`image.PicturePrompt`)."""

    def evaluate(self) -> None:
        """Bring the KV cache to it, its last logits ready to sample from."""
        ...


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
        self._context: Any = None
        self._model: Any = None
        self._shares_weights = beside is not None
        self._evaluated: list[int] = []
        self.abort = AbortFlag() if abort is None else abort
        with runtime_log().recording() as log:
            try:
                if beside is None:
                    self._model, self._adapters = open_model(path, self.options, self.abort)
                else:
                    self._model, self._adapters = beside._model, beside._adapters  # noqa: SLF001
                self._context = open_context(path, self._model, self._adapters, self.options, self.abort)
            except BaseException:
                self.close()
                raise
        self.load_log = log.text
        self._n_batch = int(c.llama_n_batch(self._context))  # never more than the context that was asked for
        self.vocabulary = Vocabulary(c.llama_model_get_vocab(self._model))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        if self._context:
            self._c.llama_free(self._context)
            self._context = None
        if self._model:
            if not self._shares_weights:
                self._c.llama_model_free(self._model)  # its adapters go with it
            self._model = None

    @property
    def n_ctx(self) -> int:
        """Tokens that the KV cache holds (llama.cpp rounds what was asked for up to a multiple of 256)."""
        return int(self._c.llama_n_ctx(self._context))

    @property
    def n_ctx_train(self) -> int:
        """The context that the model was trained with."""
        return int(self._c.llama_model_n_ctx_train(self._model))

    @property
    def threads(self) -> int:
        """Threads that generation uses."""
        return int(self._c.llama_n_threads(self._context))

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
        return self._context

    @property
    def bos_text(self) -> str:
        """The spelling of the token that begins a text; empty where there is none."""
        return self.vocabulary.text(self.vocabulary.bos)

    @property
    def _window(self) -> int:
        """Tokens that layers with sliding attention look back; 0 where there are none."""
        return int(self._c.llama_model_n_swa(self._model))

    @property
    def n_evaluated(self) -> int:
        """Tokens in the KV cache."""
        return len(self._evaluated)

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
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self._evaluated = []

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
        for start in range(0, len(ids), self._n_batch):
            chunk = ids[start : start + self._n_batch]
            wanted = (np.arange(start, start + len(chunk)) >= first).astype(np.int8)
            self._decode(chunk, wanted)
            if (n_rows := int(wanted.sum())) == 0:
                continue
            rows = np.ctypeslib.as_array(self._c.llama_get_logits(self._context), (n_rows, self.n_vocab))
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
        kept = min(common_prefix(self._evaluated, ids.tolist()), len(ids) - 1)
        kept = self._drop_after(kept)
        for start in range(kept, len(ids), self._n_batch):
            self._decode(ids[start : start + self._n_batch])
        return len(ids) - kept

    def next_logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [n_vocab] of what follows `token_ids`; of them only what differs from the KV cache is evaluated.

        Raises:
            UsageError: as `logits`.
        """
        self.evaluate(token_ids)
        return np.array(self._last_logits())

    def _last_logits(self) -> NDArray[np.float32]:
        """Logits [n_vocab] after the last evaluated token: llama.cpp's own buffer, which the next call overwrites."""
        rows: NDArray[np.float32] = np.ctypeslib.as_array(
            self._c.llama_get_logits_ith(self._context, -1), (self.n_vocab,)
        )
        return rows

    def adopt(self, token_ids: Sequence[int]) -> None:
        """Take note of what another evaluator (`image`) brought into the empty KV cache.

        Args:
            token_ids: an id for each cell, a negative one for what no token gave.
        """
        self._evaluated = list(token_ids)

    def extend(self, token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """Evaluate tokens after those in the KV cache.

        Raises:
            UsageError: no token, or an id outside the vocabulary.
            ModelRuntimeError: they do not fit.
        """
        ids = self._checked_ids(token_ids)
        for start in range(0, len(ids), self._n_batch):
            self._decode(ids[start : start + self._n_batch])
        self._c.llama_synchronize(self._context)

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
        decoder = getincrementaldecoder("utf-8")("replace")
        self.abort.clear()
        try:
            if isinstance(token_ids, PreparedPrompt):
                token_ids.evaluate()
            else:
                self.evaluate(token_ids)
            last = token_ids[-chosen.repeat_last_n :] if chosen.repeat_last_n else []
            chain.remember([int(token) for token in last if token >= 0])
            token = -1
            pace = ThreadPace(self.threads, self._set_threads) if self.options.adapt_threads else None
            for _ in count() if context_shift and max_tokens < 0 else range(self._room(max_tokens, context_shift)):
                if self.abort:
                    return
                if context_shift and self.n_evaluated == self.n_ctx:
                    self._shift()
                if token >= 0:
                    self._decode(np.array([token], np.int32))
                token = chain.sample(self._context)
                if pace is not None:
                    pace.token()
                if self.vocabulary.is_end(token):
                    return
                chances = chances_of(self._last_logits(), token, chosen.chances) if chosen.chances else None
                yield GeneratedToken(token, decoder.decode(self.vocabulary.piece(token)), chances)
        except StoppedError:
            return
        finally:
            chain.close()

    def _set_threads(self, threads: int) -> None:
        self._c.llama_set_n_threads(self._context, threads, threads)

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The pooled embedding of `token_ids`, float32, shape [n_embd]; the model's pooling, else the mean.

        Raises:
            UsageError: as `logits`, or the model was not opened with `embeddings`.
        """
        if not self.options.embeddings:
            raise UsageError("embeddings: the model was opened without them")
        ids = self._evaluated_whole(token_ids)
        pooled = self._c.llama_get_embeddings_seq(self._context, 0)
        if pooled:
            return np.ctypeslib.as_array(pooled, (self.n_embd,)).astype(np.float32, copy=True)
        rows = np.ctypeslib.as_array(self._c.llama_get_embeddings(self._context), (len(ids), self.n_embd))
        mean: NDArray[np.float32] = rows.mean(axis=0, dtype=np.float32)
        return mean

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
            self._evaluated_whole(self.tokenize(text, add_special=False, parse_special=True))
        else:
            self._evaluated_whole(self.vocabulary.pair(query, document))
        return float(self._c.llama_get_embeddings_seq(self._context, 0)[0])

    def _evaluated_whole(self, token_ids: Sequence[int]) -> NDArray[np.int32]:
        """Evaluate a text at once, every position wanted, as pooling needs it."""
        ids = self._checked_ids(token_ids)
        most = int(self._c.llama_n_ubatch(self._context))
        if len(ids) > most:
            raise UsageError(f"text has {len(ids)} tokens, embeddings take at most n_ubatch = {most}")
        self.clear()
        self._decode(ids, np.ones(len(ids), np.int8))
        return ids

    def save_state(self) -> bytes:
        """The KV cache and all that goes with it, to be restored by `restore_state` into an equal context."""
        size = self._c.llama_state_get_size(self._context)
        buffer = (ctypes.c_uint8 * size)()
        return bytes(buffer[: self._c.llama_state_get_data(self._context, buffer, size)])

    def restore_state(self, state: bytes, token_ids: Sequence[int]) -> None:
        """Bring back a state that this model saved when it had evaluated `token_ids`.

        Raises:
            ModelRuntimeError: llama.cpp refuses it; nothing is kept then.
        """
        self.clear()
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if self._c.llama_state_set_data(self._context, buffer, len(state)) != len(state):
            self.clear()
            raise ModelRuntimeError(f"{self.path}: llama.cpp refuses the saved state")
        self._evaluated = list(token_ids)

    def _room(self, max_tokens: int, context_shift: bool) -> int:
        """Tokens that may still be generated: the last one need not fit, as it is never evaluated."""
        left = self.n_ctx - self.n_evaluated + 1
        return max_tokens if context_shift else left if max_tokens < 0 else min(max_tokens, left)

    def _shift(self) -> None:
        """Forget half of the context behind its first tokens and move the rest up; nothing is evaluated again.

        Raises:
            UsageError: this kind of cache cannot be shifted.
        """
        c, memory = self._c, self._c.llama_get_memory(self._context)
        if not c.llama_memory_can_shift(memory):
            raise UsageError("context shift: this model's cache cannot be shifted; use a larger context")
        total = self.n_evaluated
        keep = min(_KEPT_BEGINNING, total // 4)
        cut = keep + (total - keep) // 2
        c.llama_memory_seq_rm(memory, 0, keep, cut)
        c.llama_memory_seq_add(memory, 0, cut, total, keep - cut)
        del self._evaluated[keep:cut]

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

    def _drop_after(self, kept: int) -> int:
        """Forget all but the first `kept` tokens; a recurrent state cannot be cut, so there it forgets all."""
        if kept == self.n_evaluated:
            return kept
        memory = self._c.llama_get_memory(self._context)
        # Layers with a sliding window keep little more than the window: what lies behind `kept` may be gone.
        behind = max(kept - self._window, 0) if self._window else kept
        whole = self._c.llama_memory_seq_pos_min(memory, 0) <= behind
        if kept and whole and self._c.llama_memory_seq_rm(memory, 0, kept, -1):
            self._evaluated = self._evaluated[:kept]
            return kept
        self.clear()
        return 0

    def _decode(self, ids: NDArray[np.int32], wanted: NDArray[np.int8] | None = None) -> None:
        """Evaluate one batch after what is in the KV cache; on failure the cache is as it was."""
        c = self._c
        batch = c.llama_batch(n_tokens=len(ids), token=ids.ctypes.data_as(c.llama_token_p))
        if wanted is not None:  # else the last position alone
            batch.logits = wanted.ctypes.data_as(type(batch.logits))
        with runtime_log().recording() as log:
            status = c.llama_decode(self._context, batch)
        if status == 0:
            self._evaluated.extend(ids.tolist())
            return
        c.llama_memory_seq_rm(c.llama_get_memory(self._context), 0, self.n_evaluated, -1)
        if status == _ABORTED:
            raise StoppedError(f"{self.path}: stopped while evaluating {len(ids)} tokens")
        reason = "the KV cache is full" if status == _NO_SLOT else log.last_errors() or "no reason given"
        raise ModelRuntimeError(f"{self.path}: llama.cpp failed to evaluate {len(ids)} tokens ({status}): {reason}")
