"""A study of caches from request to result: a file opened, read with every cache, its spectra taken, the table stored.

Measuring is `edge.kv`'s, spectra are `spectra`'s, and what an archive is made of is `packaging`'s.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgepack.edge.bench import library_version
from edgepack.edge.confidence.binding import adapter_digests, contents_digest
from edgepack.edge.fidelity.certificate_file import deliver_noted
from edgepack.edge.fidelity.scorers.scorer import Chunking, first_difference
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.install.model_file import prepare
from edgepack.edge.kv.measure import Caches, KeptChunks, measure_caches
from edgepack.edge.kv.record import Record
from edgepack.edge.kv.sizes import BASELINE, check_attention, refusal
from edgepack.edge.kv.table import CacheTable
from edgepack.edge.llama.check import check_generates
from edgepack.edge.llama.cpu_threads import free_cores
from edgepack.edge.llama.engines import require_logits
from edgepack.edge.llama.options import Adapter
from edgepack.errors import CheckFailedError, DependencyError, UnsupportedModelError, UsageError
from edgepack.gguf import keys
from edgepack.pipeline.kv.request import LEAST_CHUNKS, LONGEST_NAME, KvRequest
from edgepack.pipeline.kv.results import KvForecast, KvResult
from edgepack.progress import silent
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Chunk, Scorer
    from edgepack.edge.fit.shape import ModelShape
    from edgepack.edge.install.model_file import ModelFile
    from edgepack.model import Checkpoint
    from edgepack.pipeline.kv.spectra import Spectra
    from edgepack.progress import Progress

_OPERATIONS_PER_SECOND = 35e9  # of a thread; measured for `edge.serve.opening`, good to a factor of two
_KEPT = "caches.jsonl"


def study(
    request: KvRequest, progress: Progress = silent, note: Callable[[str], object] = lambda _text: None
) -> KvResult:
    """Measure what caches cost and what spectra there are, and store the table where that was asked for.

    Args:
        request: what is asked.
        progress: told of every stretch of work.
        note: told what a person would like to know.

    Raises:
        UsageError: the text is shorter than two chunks, the context beyond what the model was trained with, a cache's
            dimensions more than a layer has, or a folder is to get the table.
        UnsupportedModelError: the model has no attention, or does not say what comes next.
        DependencyError: llama-cpp-python is not installed, or torch where spectra were asked for.
        EdgepackError: whatever opening, measuring or packing finds wrong; nothing is left under a final name.
    """
    began = time.monotonic()
    text = read_text(request.text)
    with _file(request, progress, note) as source, ExitStack() as stack:
        shape, opened = _opened(request, source, stack)
        tokens = opened.tokenize(text)
        chunks = _chunks(request, opened, tokens)
        names, left_out = _usable(request, shape, opened)
        for name, reason in left_out.items():
            note(f"cache {name} is left out: {reason}")
        digest = contents_digest(source.path, source.header, progress)
        adapters = tuple(adapter_digests([Adapter(path) for path in source.adapters]))
        original = _original(request, text, opened, stack)
        kept = _kept(request, digest, text, adapters)
        costs = measure_caches(opened, names, chunks, original=original, kept=kept, progress=progress)
        table = CacheTable(
            tuple(costs), request.ctx, len(chunks), sum(chunk.scored for chunk in chunks),
            _printable(request.text.name),
            hashlib.sha256(text.encode()).hexdigest(), _printable(library_version("llama-cpp-python")), request.max_kl,
            _printable(request.original.name) if request.original is not None else "", left_out,
        )  # fmt: skip
        spectra, problem = _spectra(request, text, progress)
        written = 0
        if request.output is not None:
            record = Record(digest, adapters, table)
            written = deliver_noted(
                request.model, source.path, record.metadata(), keys.KV, request.output, request.trust, progress
            )
        if kept is not None:
            kept.remove()
        seconds = time.monotonic() - began
        return KvResult(request.model, shape, table, spectra, problem, digest, seconds, request.output, written)


def forecast(request: KvRequest, progress: Progress = silent) -> KvForecast:
    """What `study` would do; no token is evaluated, and nothing written. Raises as `study`.

    A folder's float16 file is not made: which caches llama.cpp would open of it is not told.
    """
    text = read_text(request.text)
    caches, parameters, vocabulary = request.names, None, 0
    left_out: dict[str, str] = {}
    if request.model.is_dir():
        from edgepack.pipeline.kv.spectra import chunks_of

        with _checkpoint(request) as checkpoint:
            found = chunks_of(checkpoint, text, Chunking(request.ctx, max_chunks=request.chunks))
            vocabulary = int(checkpoint.config.get("vocab_size") or 0)
        count, scored = len(found), found[0].scored
    else:
        with _file(request, progress, lambda _text: None) as source, ExitStack() as stack:
            shape, opened = _opened(request, source, stack)
            chunks = _chunks(request, opened, opened.tokenize(text))
            caches, left_out = _usable(request, shape, opened)
            count, scored, vocabulary = len(chunks), chunks[0].scored, opened.n_vocab
            parameters = sum(_product(tensor.shape) for tensor in source.header.tensors)
    passes = len(caches) + (request.original is not None) + _spectra_passes(request)
    rate = _OPERATIONS_PER_SECOND * (request.threads or free_cores())
    seconds = None if parameters is None else passes * count * request.ctx * 2 * parameters / rate
    return KvForecast(request.ctx, count, tuple(caches), left_out, passes * count, seconds, 2 * 4 * scored * vocabulary)


def _spectra_passes(request: KvRequest) -> int:
    """Passes over the text: the spectra's, and half of it for directions and with each cache of fewer dimensions."""
    if request.spectra is False:
        return 0
    return 1 + (1 + (len(request.dims) + 1) // 2 if request.dims else 0)


def _product(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


@contextmanager
def _file(request: KvRequest, progress: Progress, note: Callable[[str], object]) -> Iterator[ModelFile]:
    """The file that is read: the one named, or one in float16 of a folder, which is gone afterwards."""
    require_logits("measuring caches")
    if request.model.is_file():
        yield prepare(request.model, trust=request.trust, progress=progress, note=note)
        return
    if not request.model.is_dir():
        raise UsageError(f"'{request.model}': no such file or folder")
    if request.output is not None:
        raise UsageError(f"'{request.model}': a folder cannot carry what caches cost: export it, then measure the file")
    from edgepack.pipeline.export import run_export
    from edgepack.pipeline.request import ExportRequest

    with TemporaryDirectory(prefix="edgepack-kv-") as folder:
        path = Path(folder) / "float16.gguf"
        run_export(ExportRequest(model=request.model, target="gguf-f16", output=path, progress=progress))
        note(f"{request.model}: measured as a float16 GGUF, which is made in a scratch folder")
        yield prepare(path, trust=request.trust, progress=progress, note=note)


def _opened(request: KvRequest, source: ModelFile, stack: ExitStack) -> tuple[ModelShape, Caches]:
    check_generates(source.header)
    shape = read_shape(source.header)
    check_attention(shape, str(request.model))
    if request.ctx > shape.n_ctx_train:
        raise UsageError(f"context {request.ctx}: the model was trained with {shape.n_ctx_train}")
    adapters = tuple(Adapter(path) for path in source.adapters)
    opened = Caches(
        source.path, request.ctx, threads=request.threads, n_gpu_layers=request.n_gpu_layers, adapters=adapters
    )
    stack.enter_context(closing(opened))
    return shape, opened


def _chunks(request: KvRequest, opened: Caches, tokens: NDArray[np.int32]) -> list[Chunk]:
    chunking = Chunking(request.ctx, max_chunks=request.chunks)
    if (count := chunking.count(len(tokens))) < LEAST_CHUNKS:
        raise UsageError(
            f"'{request.text}': {len(tokens)} tokens are {count} chunk of {request.ctx}, expected at least "
            f"{LEAST_CHUNKS}: give more text, or shorter chunks with --ctx"
        )
    return list(chunking.chunks(tokens, opened.bos))


def _usable(request: KvRequest, shape: ModelShape, opened: Caches) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of caches that llama.cpp opens of the model, and why not the others."""
    reasons = {name: refusal(shape, name) or opened.open_problem(name) for name in request.names if name != BASELINE}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    return tuple(name for name in request.names if name not in left_out), left_out


def _original(request: KvRequest, text: str, opened: Caches, stack: ExitStack) -> Scorer | None:
    """The original in torch, whose token ids must be the file's."""
    if request.original is None:
        return None
    from edgepack.edge.fidelity.scorers.gguf import GGUFTokenizer
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.pipeline.fidelity import open_original

    options = ScoringOptions(ctx=request.ctx, threads=request.threads)
    scorer = open_original(request.original, request.located, options)
    stack.callback(scorer.close)
    if difference := first_difference(scorer.tokenizer, GGUFTokenizer(opened.model), text):
        raise CheckFailedError(f"'{request.original}': {difference}: is it this file's original?")
    return scorer


def _kept(request: KvRequest, digest: str, text: str, adapters: Sequence[str]) -> KeptChunks | None:
    if request.work is None:
        return None
    original = str(request.original) if request.located is None else request.located.digest()
    key = {
        "contents": digest, "adapters": list(adapters), "text": hashlib.sha256(text.encode()).hexdigest(),
        "ctx": request.ctx, "original": original, "engine": library_version("llama-cpp-python"),
        "n_gpu_layers": request.n_gpu_layers,
    }  # fmt: skip
    return KeptChunks(request.work / _KEPT, key)


@contextmanager
def _checkpoint(request: KvRequest) -> Iterator[Checkpoint]:
    """The checkpoint that spectra are taken of: the original, the folder itself, or what a GGUF is read back into."""
    try:
        from edgepack.export.backwards.checkpoint import opened_source
        from edgepack.pipeline.kv import spectra as _torch_is_there  # noqa: F401
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"spectra are taken in torch: '{error.name}' is not installed, use pip install 'edgepack[compress]'"
        ) from None
    if request.located is not None:
        yield request.located.checkpoint
        return
    path = request.original or request.model
    if path.is_file() and request.original is None:
        path = prepare(path, trust=request.trust, progress=silent).path
    with opened_source(path) as checkpoint:
        yield checkpoint


def _spectra(request: KvRequest, text: str, progress: Progress) -> tuple[Spectra | None, str]:
    """Spectra, or why there are none: an error only where they were asked for."""
    if request.spectra is False:
        return None, ""
    try:
        with _checkpoint(request) as checkpoint:
            from edgepack.pipeline.kv.spectra import chunks_of, take_spectra

            chunks = chunks_of(checkpoint, text, Chunking(request.ctx, max_chunks=request.chunks))
            return take_spectra(checkpoint, chunks, request.dims, device=request.device, progress=progress), ""
    except (DependencyError, UnsupportedModelError) as error:
        if request.spectra or request.dims:
            raise
        return None, str(error)


def _printable(name: str) -> str:
    """A name as the table keeps it."""
    return "".join(sign if sign.isprintable() else "?" for sign in name)[:LONGEST_NAME] or "?"
