"""llama.cpp's context: the tokens in its KV cache, and what evaluating more of them leaves to be read.

How it is opened is `handles`', which tokens are evaluated and what is made of the logits `runtime`'s.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.llama.engine import StoppedError
from edgepack.edge.llama.log import runtime_log
from edgepack.errors import ModelRuntimeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_NO_SLOT = 1  # llama_decode: the KV cache is full
_KEPT_BEGINNING = 4  # tokens that a context shift never forgets: attention leans on the first ones
_ABORTED = 2  # llama_decode: the abort callback said so


class Context:
    """One `llama_context` and the tokens of its one sequence.

    Args:
        path: of the model, for messages.

    Attributes:
        pointer: `llama_context *`, to be set once it is open; None before and after.
        tokens: what is in the KV cache: an id for each cell, a negative one for what no token gave.
    """

    def __init__(self, path: Path) -> None:
        from llama_cpp import llama_cpp as c

        self._c = c
        self._path = path
        self.pointer: Any = None
        self.tokens: list[int] = []

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self.pointer:
            self._c.llama_free(self.pointer)
            self.pointer = None

    @property
    def size(self) -> int:
        """Tokens that the KV cache holds (llama.cpp rounds what was asked for up to a multiple of 256)."""
        return int(self._c.llama_n_ctx(self.pointer))

    @property
    def batch(self) -> int:
        """Tokens that one call evaluates; never more than the context that was asked for."""
        return int(self._c.llama_n_batch(self.pointer))

    @property
    def physical_batch(self) -> int:
        """Tokens that are computed at once."""
        return int(self._c.llama_n_ubatch(self.pointer))

    @property
    def threads(self) -> int:
        """Threads that generation uses."""
        return int(self._c.llama_n_threads(self.pointer))

    def set_threads(self, threads: int) -> None:
        """Let prompts and generation use so many."""
        self._c.llama_set_n_threads(self.pointer, threads, threads)

    @property
    def _window(self) -> int:
        """Tokens that layers with sliding attention look back; 0 where there are none."""
        return int(self._c.llama_model_n_swa(self._c.llama_get_model(self.pointer)))

    def clear(self) -> None:
        """Forget every evaluated token."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self.pointer), True)
        self.tokens = []

    def wait(self) -> None:
        """Until everything is computed."""
        self._c.llama_synchronize(self.pointer)

    def evaluate(self, ids: NDArray[np.int32], wanted: NDArray[np.int8] | None = None) -> None:
        """Evaluate one batch after what is in the KV cache; on failure the cache is as it was.

        Args:
            ids: at most `batch`.
            wanted: 1 for a position whose logits are wanted, else 0; None for the last one alone.

        Raises:
            StoppedError: the abort callback said so.
            ModelRuntimeError: they do not fit, or llama.cpp fails.
        """
        c = self._c
        batch = c.llama_batch(n_tokens=len(ids), token=ids.ctypes.data_as(c.llama_token_p))
        if wanted is not None:  # else the last position alone
            batch.logits = wanted.ctypes.data_as(type(batch.logits))
        with runtime_log().recording() as log:
            status = c.llama_decode(self.pointer, batch)
        if status == 0:
            self.tokens.extend(ids.tolist())
            return
        c.llama_memory_seq_rm(c.llama_get_memory(self.pointer), 0, len(self.tokens), -1)
        if status == _ABORTED:
            raise StoppedError(f"{self._path}: stopped while evaluating {len(ids)} tokens")
        reason = "the KV cache is full" if status == _NO_SLOT else log.last_errors() or "no reason given"
        raise ModelRuntimeError(f"{self._path}: llama.cpp failed to evaluate {len(ids)} tokens ({status}): {reason}")

    def keep_first(self, kept: int) -> int:
        """Forget all but the first `kept` tokens; a recurrent state cannot be cut, so there it forgets all.

        Returns:
            How many are left.
        """
        if kept == len(self.tokens):
            return kept
        memory = self._c.llama_get_memory(self.pointer)
        # Layers with a sliding window keep little more than the window: what lies behind `kept` may be gone.
        behind = max(kept - self._window, 0) if self._window else kept
        whole = self._c.llama_memory_seq_pos_min(memory, 0) <= behind
        if kept and whole and self._c.llama_memory_seq_rm(memory, 0, kept, -1):
            self.tokens = self.tokens[:kept]
            return kept
        self.clear()
        return 0

    def shift(self) -> None:
        """Forget half of the context behind its first tokens and move the rest up; nothing is evaluated again.

        Raises:
            UsageError: this kind of cache cannot be shifted.
        """
        c, memory = self._c, self._c.llama_get_memory(self.pointer)
        if not c.llama_memory_can_shift(memory):
            raise UsageError("context shift: this model's cache cannot be shifted; use a larger context")
        total = len(self.tokens)
        keep = min(_KEPT_BEGINNING, total // 4)
        cut = keep + (total - keep) // 2
        c.llama_memory_seq_rm(memory, 0, keep, cut)
        c.llama_memory_seq_add(memory, 0, cut, total, keep - cut)
        del self.tokens[keep:cut]

    def logits(self, rows: int, width: int) -> NDArray[np.float32]:
        """Logits [rows, width] of the wanted positions: llama.cpp's own buffer, which the next call overwrites."""
        found: NDArray[np.float32] = np.ctypeslib.as_array(self._c.llama_get_logits(self.pointer), (rows, width))
        return found

    def last_logits(self, width: int) -> NDArray[np.float32]:
        """Logits [width] after the last evaluated token, likewise."""
        found: NDArray[np.float32] = np.ctypeslib.as_array(self._c.llama_get_logits_ith(self.pointer, -1), (width,))
        return found

    def pooled(self, width: int) -> NDArray[np.float32]:
        """The embedding [width] of all that was evaluated: pooled as the model says, else the mean of its rows."""
        pooled = self._c.llama_get_embeddings_seq(self.pointer, 0)
        if pooled:
            return np.ctypeslib.as_array(pooled, (width,)).astype(np.float32, copy=True)
        rows = np.ctypeslib.as_array(self._c.llama_get_embeddings(self.pointer), (len(self.tokens), width))
        mean: NDArray[np.float32] = rows.mean(axis=0, dtype=np.float32)
        return mean

    def rank(self) -> float:
        """What a cross-encoder says of all that was evaluated."""
        return float(self._c.llama_get_embeddings_seq(self.pointer, 0)[0])

    def save(self) -> bytes:
        """The KV cache and all that goes with it, to be restored by `restore` into an equal context."""
        size = self._c.llama_state_get_size(self.pointer)
        buffer = (ctypes.c_uint8 * size)()
        return bytes(buffer[: self._c.llama_state_get_data(self.pointer, buffer, size)])

    def restore(self, state: bytes, tokens: Sequence[int]) -> None:
        """Bring back a state that was saved when it had evaluated `tokens`.

        Raises:
            ModelRuntimeError: llama.cpp refuses it; nothing is kept then.
        """
        self.clear()
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if self._c.llama_state_set_data(self.pointer, buffer, len(state)) != len(state):
            self.clear()
            raise ModelRuntimeError(f"{self._path}: llama.cpp refuses the saved state")
        self.tokens = list(tokens)
