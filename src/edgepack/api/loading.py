"""`edgepack.load`: a file becomes a model that answers. What an opened model does is left to `model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.api.model import Model
from edgepack.api.opening import OpenOptions, adapters_of, ignore, open_file
from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import optional_path
from edgepack.edge.fit.opening import runtime_options
from edgepack.edge.llama.check import generates
from edgepack.edge.llama.check_projector import with_room_for_images
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.api.values import FilePath
    from edgepack.edge.llama.engine import EngineWish
    from edgepack.edge.llama.options import Adapter
    from edgepack.progress import Progress


def load(
    file: FilePath,
    *,
    ctx: int | None = None,
    device: str = "auto",
    n_gpu_layers: int | None = None,
    kv_type: str | None = None,
    threads: int | None = None,
    adapters: Sequence[Adapter | FilePath] = (),
    own_adapters: bool = True,
    projector: FilePath | None = None,
    template: str | None = None,
    embeddings: bool = False,
    engine: EngineWish = "auto",
    verify: bool = False,
    trusted: Trusted = (),
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> Model:
    """Open a GGUF, or an archive (which is installed in this machine's cache first), ready to answer.

    Use it in a `with` block, or call `close`.

    Args:
        file: the `.edgepack` or GGUF.
        ctx: tokens of context; by default up to 8192, what fits.
        device: `auto`, `cpu`, or a profile whose memory this machine is treated as having.
        n_gpu_layers: layers on the GPU, -1 for all; by default what fits.
        kv_type: of the KV cache: `f16`, `q8_0` …; by default `f16`, `q8_0` where that is too large.
        threads: of the CPU; by default physical cores, one for very small models.
        adapters: GGUF LoRAs to apply; `edgepack.Adapter(path, scale)` for another strength than as trained.
        own_adapters: apply those that the archive brings too.
        projector: a GGUF of what sees, for `images`; by default the one that the archive brings.
        template: a chat template by a name that llama.cpp knows, or a Jinja file; by default the model's own.
        embeddings: open it for `embed` (a cross-encoder: for `rerank`) first, as encoders always are; what is not
            opened now is opened when it is first asked for.
        engine: `llama-cpp-python`, `xllamacpp`, or `auto`: the first of the two that is installed.
        verify: check every byte of an installed archive first.
        trusted: files of public keys, one of which must have signed (by default: of the trust store), or a policy.
        progress: told of bytes that are restored.
        note: told what a person would like to know.

    Raises:
        UsageError: there is no such file, device, KV type or template, or the context is longer than the model's.
        GGUFError, ArchiveError, IntegrityError: the file is not sound.
        CheckFailedError: nobody trusted signed it.
        DependencyError: no engine is installed.
        ResourceError: nothing fits; the text says what is missing.
        ModelRuntimeError: llama.cpp refuses it.
    """
    options = OpenOptions(
        ctx, device, n_gpu_layers, kv_type, threads, adapters_of(adapters), own_adapters, verify,
        engine=engine, trust=policy_for(trusted), projector=optional_path(projector),
    )  # fmt: skip
    model = prepare_model(file, options, template, progress=progress, note=note)
    try:
        if template is not None:
            model.chat_template()
        model.open(embeddings=embeddings or not generates(model.source.header))
    except BaseException:
        model.close()
        raise
    return model


def prepare_model(
    file: FilePath,
    options: OpenOptions,
    template: str | None = None,
    *,
    progress: Progress = silent,
    note: Callable[[str], object] = ignore,
) -> Model:
    """As `load`, but llama.cpp opens nothing before it is needed (or `open` asks for it)."""
    source, wish = open_file(file, options, progress, note)
    opened = with_room_for_images(runtime_options(source.header, wish, note), source.projector)
    return Model(source, wish, opened, str(file), template)
