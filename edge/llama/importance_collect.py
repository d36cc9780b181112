"""Collects an importance matrix by running a GGUF in llama.cpp and watching its matrix products.

What is summed of it is `importance_watch`'s. Files are left to `quant.calibration.importance_file`.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.llama.engines import require_logits
from edgepack.edge.llama.handles import context_parameters, open_model
from edgepack.edge.llama.importance_watch import ImportanceWatch
from edgepack.edge.llama.interrupt import AbortFlag, held_signals
from edgepack.edge.llama.log import runtime_log
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.vocabulary import Vocabulary
from edgepack.errors import CalibrationError, ModelRuntimeError
from edgepack.progress import silent
from edgepack.quant.calibration.importance import ImportanceMatrix, ImportanceSums
from edgepack.quant.calibration.text import evenly_spread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.crew import Crew
    from edgepack.progress import Progress
    from edgepack.quant.calibration.importance import ImportanceEntry

DEFAULT_CHUNK = 512


@dataclass(frozen=True)
class CollectOptions:
    """How a text is run.

    Attributes:
        chunk: tokens of a piece of text; never more than the model was trained for.
        chunks: at most this many pieces; None is all.
        spread: take them evenly over the text, not from its beginning.
        include_head: watch `output.weight` too.
        threads: 0 is every physical core.
        n_gpu_layers: layers on the GPU.
    """

    chunk: int = DEFAULT_CHUNK
    chunks: int | None = None
    spread: bool = False
    include_head: bool = False
    threads: int = 0
    n_gpu_layers: int = 0


class ImportanceCollector:
    """One model being watched; `close` it at the end.

    Args:
        path: a GGUF.
        options: how the text is run.

    Raises:
        ModelRuntimeError: llama.cpp refuses the model.
    """

    def __init__(self, path: Path, options: CollectOptions) -> None:
        require_logits("collecting importance")
        from llama_cpp import llama_cpp as c

        self._c, self.path, self.options = c, path, options
        runtime = RuntimeOptions(threads=options.threads, n_gpu_layers=options.n_gpu_layers)
        self._model, _ = open_model(path, runtime)
        self.chunk = min(options.chunk, int(c.llama_model_n_ctx_train(self._model)))
        runtime = replace(runtime, n_ctx=self.chunk, n_batch=self.chunk, n_ubatch=self.chunk)
        self.abort = AbortFlag()
        self.watch = ImportanceWatch(options.include_head, self.abort)
        parameters = context_parameters(runtime)
        self.abort.install(parameters)
        # ctypes keeps no reference of its own: it must live as long as the context
        self._callback = c.ggml_backend_sched_eval_callback(self.watch.call)
        parameters.cb_eval = self._callback
        with held_signals(), runtime_log().recording() as log:
            self._context = c.llama_init_from_model(self._model, parameters)
        if not self._context:
            c.llama_model_free(self._model)
            raise ModelRuntimeError(
                f"{path}: llama.cpp cannot open a context: {log.last_errors() or 'no reason given'}"
            )
        self._vocabulary = Vocabulary(c.llama_model_get_vocab(self._model))

    def close(self) -> None:
        """Free context and model."""
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)

    def chunks(self, text: str) -> NDArray[np.int32]:
        """The text in pieces of equal length; each begins with the begin-of-text token where the model adds one.

        Returns:
            int32, shape [chunks, tokens].

        Raises:
            CalibrationError: the text is shorter than one piece.
        """
        tokens = np.array(self._vocabulary.tokenize(text, add_special=True, parse_special=False), dtype=np.int32)
        size, count = self.chunk, len(tokens) // self.chunk
        if not count:
            raise CalibrationError(f"calibration text: expected at least {size} tokens, got {len(tokens)}")
        taken = min(count, self.options.chunks or count)
        chosen = evenly_spread(count, taken) if self.options.spread else slice(taken)
        pieces: NDArray[np.int32] = tokens[: count * size].reshape(count, size)[chosen].copy()
        if self._c.llama_vocab_get_add_bos(self._vocabulary.pointer):
            pieces[:, 0] = self._c.llama_vocab_bos(self._vocabulary.pointer)
        return pieces

    def run(self, tokens: NDArray[np.int32]) -> bool:
        """Run one piece of text; its activations are added to the sums, all of them or none.

        Returns:
            False where a signal stopped it; nothing is added then. Call it while signals are held.

        Raises:
            ModelRuntimeError: llama.cpp fails.
            NumericError: an activation is NaN or infinite.
        """
        c = self._c
        self.watch.begin()
        batch = c.llama_batch_init(len(tokens), 0, 1)
        try:
            for place, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = int(token), place
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
                batch.logits[place] = 1  # else the last block sees the last token only
            batch.n_tokens = len(tokens)
            c.llama_memory_clear(c.llama_get_memory(self._context), True)
            with runtime_log().recording() as log:
                status = c.llama_decode(self._context, batch)
                c.llama_synchronize(self._context)
        finally:
            c.llama_batch_free(batch)
        self.watch.raise_failure()
        if self.abort:
            return False
        if status:
            raise ModelRuntimeError(f"{self.path}: llama.cpp failed: {log.last_errors() or f'status {status}'}")
        self.watch.commit()
        return True


@dataclass(frozen=True)
class CollectContext:
    """A model that another process runs pieces of text through; it is opened there at the first.

    Attributes:
        path: a GGUF.
        options: how the text is run.
    """

    path: Path
    options: CollectOptions

    @cached_property
    def collector(self) -> ImportanceCollector:
        """The opened model."""
        return ImportanceCollector(self.path, self.options)


def run_piece(context: CollectContext, tokens: NDArray[np.int32]) -> dict[str, ImportanceEntry]:
    """What one piece adds to the sums; what a worker does. Raises as `ImportanceCollector.run`."""
    watch = context.collector.watch
    watch.sums = ImportanceSums()
    context.collector.run(np.array(tokens))
    return dict(watch.sums.entries)


def collect_importance(
    path: Path,
    text: str,
    dataset: str,
    options: CollectOptions = CollectOptions(),
    *,
    start: ImportanceMatrix | None = None,
    keep: Callable[[ImportanceMatrix, bool], object] = lambda _matrix, _last: None,
    progress: Progress = silent,
    crew: Crew | None = None,
) -> ImportanceMatrix:
    """Run `text` through the model at `path`.

    Args:
        path: a GGUF.
        text: any text.
        dataset: its name, for the file.
        options: how it is run.
        start: a run of the same text that was interrupted: it goes on behind its `chunk_count`.
        keep: called after each piece with what there is so far, and whether that is all because a signal came.
        progress: told of each piece done.
        crew: who runs the pieces, each as one process would, and added in the text's order; None for this process.

    Raises:
        CalibrationError: the text is too short.
        ModelRuntimeError: llama.cpp refuses the model or fails.
        NumericError: an activation is NaN or infinite.
        KeyboardInterrupt, SystemExit: a signal came; no piece is counted half.
    """
    with closing(ImportanceCollector(path, options)) as collector:
        pieces = collector.chunks(text)
        done = 0 if start is None else min(start.chunk_count, len(pieces))
        if start is not None:
            collector.watch.sums.entries.update(start.entries)
        matrix = ImportanceMatrix(collector.watch.sums.entries, done, collector.chunk, (dataset,))
        with progress("imatrix", len(pieces), " chunks") as advance:
            advance(done)
            if crew is not None:
                context = crew.share(CollectContext(path, options))
                need = lambda _piece: path.stat().st_size  # noqa: E731 - the file is mapped by every worker
                for piece in crew.map(run_piece, context, list(pieces[done:]), need=need, with_torch=True):
                    collector.watch.add(piece)
                    matrix = replace(matrix, chunk_count=matrix.chunk_count + 1)
                    keep(matrix, False)
                    advance(1)
                return matrix
            try:
                for number in range(done, len(pieces)):
                    with held_signals(collector.abort):  # sums and their count change together
                        if collector.run(pieces[number]):
                            matrix = replace(matrix, chunk_count=number + 1)
                    keep(matrix, False)
                    advance(1)
            except (KeyboardInterrupt, SystemExit):
                keep(matrix, True)
                raise
        return matrix
