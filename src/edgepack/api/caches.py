"""`edgepack.kv`: what each type of KV cache costs, and how few dimensions would do; the work is `pipeline.kv`'s."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.opening import ignore
from edgepack.api.places import check_there, files_of, local_path
from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import FilePath, optional_path
from edgepack.edge.fidelity.certificate_file import places_of_copy
from edgepack.edge.kv.sizes import USUAL
from edgepack.edge.kv.table import MAX_KL
from edgepack.files.claim import claimed_output
from edgepack.pipeline.kv.request import DEFAULT_CHUNKS, DEFAULT_CTX, KvRequest
from edgepack.pipeline.kv.study import forecast, study
from edgepack.pipeline.located import opened_place
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.pipeline.kv.results import KvForecast, KvResult
    from edgepack.progress import Progress


def kv(
    model: FilePath,
    text: FilePath,
    output: FilePath | None = None,
    *,
    ctx: int = DEFAULT_CTX,
    chunks: int = DEFAULT_CHUNKS,
    types: Sequence[str] = USUAL,
    dims: Sequence[int] = (),
    max_kl: float = MAX_KL,
    original: FilePath | None = None,
    spectra: bool | None = None,
    work: FilePath | None = None,
    threads: int | None = None,
    n_gpu_layers: int = 0,
    device: str = "cpu",
    dry_run: bool = False,
    force: bool = False,
    trusted: Trusted = (),
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> KvResult | KvForecast:
    """Measure what each type of KV cache costs a model, and how many dimensions its keys and values really use.

    Caches are measured through llama-cpp-python on the text itself, against the f16 cache of the same file. The table
    that an output carries is read by `fit`, `load`, `run` and `serve`: where f16 does not fit, they take the smallest
    cache that is surely within `max_kl`.

    Args:
        model: a GGUF, an `.edgepack`, or a Hugging Face folder, which is measured as a float16 GGUF.
        text: what is read; at least two chunks.
        output: an `.edgepack`, or any other name for the GGUF, that carries the table; None measures alone.
        ctx: tokens of a chunk; the second half of each is scored.
        chunks: at most so many, from the text's beginning.
        types: caches such as `q8_0`, or of K and of V: `q8_0/q4_0`; `f16` is measured in any case.
        dims: dimensions of keys and of values, all heads of a layer together: what caches that hold no more would lose.
        max_kl: nats a token that a device may lose by its cache, as the output is to state.
        original: the checkpoint that a file was made of, a folder or a URL of one as text: caches are held against it
            too, and spectra are its.
        spectra: whether they are taken; None where torch is there and the file can be read back as a checkpoint.
        work: a folder from which an interrupted measurement goes on; gone when it is whole.
        threads: of the CPU; by default cores that are free.
        n_gpu_layers: llama.cpp's layers on the GPU; -1 is all.
        device: torch's, of spectra.
        dry_run: say what would be done and about how long it would take; evaluate and write nothing.
        force: replace files that are there already; never an input.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        progress: told of every stretch of work.
        note: told what a person would like to know.

    Raises:
        UsageError: a file is absent, the text shorter than two chunks, the context beyond what the model was trained
            with, a cache unknown, or dimensions more than a layer has.
        UnsupportedModelError: the model has no attention, or does not say what comes next.
        CheckFailedError: the original has other tokens; or nobody trusted signed the archive.
        DependencyError: llama-cpp-python, or torch for spectra that were asked for, is not installed.
        EdgepackError: whatever opening or packing finds wrong; nothing is left behind.
    """
    path = local_path(model, "kv measures a file of it, which edgepack export makes")
    policy, target = policy_for(trusted), optional_path(output)
    with ExitStack() as opened:
        origin, located = None, None
        if original is not None:
            origin, located = opened.enter_context(opened_place(original, None))
        request = KvRequest(
            path, Path(text), ctx, chunks, tuple(types), tuple(dims), max_kl, origin, spectra, target,
            optional_path(work), threads or 0, n_gpu_layers, device, policy, located,
        )  # fmt: skip
        check_there(path)
        if dry_run:
            return forecast(request, progress)
        inputs = files_of(path, request.text, original)
        for place in () if path.is_dir() else places_of_copy(path, target, policy):
            opened.enter_context(claimed_output(place, inputs=inputs, force=force))
        return study(request, progress, note)
