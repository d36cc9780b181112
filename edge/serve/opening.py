"""How a model is served: which engines it needs, how many requests at once, how much of a prompt at a time.

What fits is `fit`'s choice for one request; here is what follows from it for several.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.edge.chat.template import NamedTemplate, choose_template, special_tokens
from edgepack.edge.fit.choice import Fitter, FitWish
from edgepack.edge.fit.memory import MemoryRequest
from edgepack.edge.fit.opening import running_device
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.llama.check_projector import tokens_together
from edgepack.edge.llama.cpu_threads import cores_are_shared, free_cores
from edgepack.edge.llama.options import kv_type
from edgepack.edge.serve.engine.settings import EngineSettings, Task
from edgepack.edge.serve.protocol.facts import ServedFacts
from edgepack.errors import UnsupportedModelError
from edgepack.gguf import keys
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from edgepack.edge.install.model_file import ModelFile
    from edgepack.edge.llama.options import RuntimeOptions
    from edgepack.gguf.reader import GGUFHeader

USUAL_SLOTS = 4
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
_MEAN, _RANK = 1, 4  # enum llama_pooling_type
# A text to embed is evaluated in one batch, whose compute buffer grows with it.
_LONGEST_EMBEDDED = 2048
# Multiplications and additions of prompts a second and thread: 34 · 10⁹ measured with AVX2 (SmolLM2-135M Q4_1, one
# thread of a 2-core VM, 2026-11-28). It only has to say how long a batch takes, by a factor of two.
_OPERATIONS_PER_SECOND = 35e9
_BATCH_SECONDS = 0.5
_POLL = 50  # llama.cpp's own; on shared cores a thread that polls takes from the one it waits for
_LEAST_BATCH, _LARGEST_BATCH = 32, 512


def slots_that_fit(header: GGUFHeader, opened: RuntimeOptions, device: str, wanted: int | None, beside: int = 0) -> int:
    """How many requests are answered at once: each has a context of its own, which must fit into memory too.

    Args:
        header: of the model.
        opened: how it is opened for one.
        device: as the user named it.
        wanted: what the user insists on, or None for up to `USUAL_SLOTS`.
        beside: bytes of what is loaded beside the model, such as a projector.
    """
    if wanted is not None:
        return wanted
    try:
        fitter = Fitter(read_shape(header), running_device(device, "xllamacpp"), FitWish(beside=beside))
    except UnsupportedModelError:
        return USUAL_SLOTS  # its memory cannot be predicted
    request = MemoryRequest(
        n_ctx=opened.n_ctx,
        n_batch=opened.n_batch,
        n_ubatch=opened.n_ubatch,
        kv_type_k=opened.kv_type_k,
        kv_type_v=opened.kv_type_v,
        n_gpu_layers=opened.n_gpu_layers,
    )
    slots = USUAL_SLOTS
    while slots > 1 and not fitter.fits(replace(request, n_ctx=opened.n_ctx * slots)):
        slots //= 2
    return slots


def batch_tokens(header: GGUFHeader, opened: RuntimeOptions) -> int:
    """Prompt tokens evaluated at once, a power of two: few enough that a client who leaves is noticed within a second.

    On a GPU a batch is short anyway, and small ones would cost speed.
    """
    if opened.n_gpu_layers:
        return opened.n_ubatch
    parameters = sum(math.prod(tensor.shape) for tensor in header.tensors)
    rate = _OPERATIONS_PER_SECOND * (opened.threads or free_cores())
    tokens = int(_BATCH_SECONDS * rate / (2 * max(parameters, 1)))
    return max(_LEAST_BATCH, min(_LARGEST_BATCH, 1 << max(tokens, 1).bit_length() - 1))


def tasks_of(header: GGUFHeader) -> tuple[Task, ...]:
    """What a model is for; the first is what it is opened for at once."""
    architecture = header.get(keys.ARCHITECTURE)
    if header.get(f"{architecture}.pooling_type") == _RANK:
        return ("rerank",)
    if header.get(f"{architecture}.attention.causal") is False:
        return ("embedding",)
    return ("text", "embedding")


def served_facts(source: ModelFile, name: str, n_ctx: int, slots: int, *, has_template: bool) -> ServedFacts:
    """What requests are held against; the engine adds what it alone knows."""
    header = source.header
    architecture = header.get(keys.ARCHITECTURE)
    width = header.get(f"{architecture}.embedding_length_out") or header.get(f"{architecture}.embedding_length")
    return ServedFacts(
        name=name,
        created=int(source.path.stat().st_mtime),
        tasks=tasks_of(header),
        n_ctx=n_ctx,
        n_ctx_train=int(header.get(f"{architecture}.context_length") or n_ctx),
        n_vocab=len(header.get(keys.TOKENS) or ()) or int(header.get(f"{architecture}.vocab_size") or 0),
        n_embd=int(width or 0),
        slots=slots,
        has_template=has_template,
        sentencepiece=header.get(keys.TOKENIZER_MODEL) != "gpt2",
    )


def served_template(source: ModelFile, wanted: str | None, label: str) -> tuple[str, bool]:
    """The template's text and whether it is Jinja (else llama.cpp's name of one); an empty text where there is none.

    It is tried once in the sandbox: what does not end, or eats memory, is refused before the engine sees it.

    Raises:
        TemplateError: it is broken.
        UsageError: the name is unknown.
    """
    if source.template is None and wanted is None:
        return "", True
    with_worker = choose_template(wanted, source.template, special_tokens(source.header), label)
    with_worker.close()
    if isinstance(with_worker, NamedTemplate):
        assert wanted is not None
        return wanted, False
    return (source.template or "") if wanted is None else _file_text(wanted), True


def _file_text(path: str) -> str:
    from pathlib import Path

    return read_text(Path(path))


def engine_settings(
    source: ModelFile,
    opened: RuntimeOptions,
    facts: ServedFacts,
    template: tuple[str, bool],
) -> dict[Task, EngineSettings]:
    """How each task's engine opens the model, with the projector that belongs to it."""
    mmproj = source.projector
    text = EngineSettings(
        model=str(source.path.resolve()),
        name=facts.name,
        n_ctx=facts.n_ctx,
        slots=facts.slots,
        n_batch=max(batch_tokens(source.header, opened), tokens_together(mmproj)),
        threads=opened.threads or free_cores(),
        poll=0 if cores_are_shared() else _POLL,
        kv_type_k=int(kv_type(opened.kv_type_k)),
        kv_type_v=int(kv_type(opened.kv_type_v)),
        n_gpu_layers=opened.n_gpu_layers,
        flash_attention=_FLASH_ATTENTION[opened.flash_attention],
        adapters=tuple((str(adapter.path.resolve()), adapter.scale) for adapter in opened.adapters),
        chat_template=template[0],
        jinja=template[1],
        mmproj=str(mmproj.resolve()) if mmproj is not None else "",
    )
    return {task: text if task == "text" else _pooled(text, task, source.header) for task in facts.tasks}


def _pooled(text: EngineSettings, task: Task, header: GGUFHeader) -> EngineSettings:
    """The engine for vectors: pooled as the model was trained, else the mean over its tokens."""
    architecture = header.get(keys.ARCHITECTURE)
    own = header.get(f"{architecture}.pooling_type")
    pooling = _RANK if task == "rerank" else int(own) if own else _MEAN
    longest = min(text.n_ctx, _LONGEST_EMBEDDED)
    return replace(text, task=task, slots=1, n_ctx=longest, n_batch=longest, pooling=pooling, mmproj="")
