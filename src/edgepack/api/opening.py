"""How the API opens a model on this machine: the file prepared, its adapters gathered, what the caller insists on.

What fits is chosen by `edge.fit`; running is left to `model`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.edge.fit.opening import OpenWish
from edgepack.edge.install.in_place import FromArchive
from edgepack.edge.install.model_file import ModelFile, prepare
from edgepack.edge.install.projector import projector_of
from edgepack.edge.llama.check import check_adapter
from edgepack.edge.llama.cpu_threads import first_look
from edgepack.edge.llama.engines import choose_engine
from edgepack.edge.llama.options import Adapter
from edgepack.errors import UsageError
from edgepack.gguf import keys
from edgepack.packaging.plain_gguf import is_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.api.values import FilePath
    from edgepack.edge.llama.engine import EngineWish
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.progress import Progress


_POSITIONS = "position_embd.weight"  # learned, one row a position


@dataclass(frozen=True)
class OpenOptions:
    """How a model is opened; None leaves it to what fits.

    Attributes:
        ctx: tokens of context.
        device: `auto`, `cpu`, or a profile whose memory this machine is treated as having.
        n_gpu_layers: layers on the GPU; -1 is all.
        kv_type: of the KV cache: `f16`, `q8_0` …
        threads: of the CPU; by default physical cores, one for very small models.
        adapters: GGUF LoRAs to apply.
        own_adapters: apply those that an archive brings too.
        projector: a GGUF of what sees, in place of the one that an archive brings.
        verify: check every byte of an installed archive first.
        engine: which package runs it; `auto` takes llama-cpp-python where it is installed, else xllamacpp.
        from_archive: when an archive's model is decoded into memory instead of being installed.
        trust: whose archives are taken; the user's trust store by default.
    """

    ctx: int | None = None
    device: str = "auto"
    n_gpu_layers: int | None = None
    kv_type: str | None = None
    threads: int | None = None
    adapters: tuple[Adapter, ...] = ()
    own_adapters: bool = True
    verify: bool = False
    from_archive: FromArchive = FromArchive.NEVER
    trust: TrustPolicy | None = None
    engine: EngineWish = "auto"
    projector: Path | None = None


def ignore(text: str) -> None:
    """A listener of notes that hears nothing."""


def open_file(
    file: FilePath, options: OpenOptions, progress: Progress, note: Callable[[str], object] = ignore
) -> tuple[ModelFile, OpenWish]:
    """The model in `file`, installed where it is an archive, and what `edge.fit` is asked for.

    Raises:
        UsageError: there is no such file, an adapter is none, or a projector is none or another model's.
        DependencyError: the engine is not installed.
        GGUFError, ArchiveError, IntegrityError: the file is not sound.
        CheckFailedError: nobody trusted signed it.
    """
    first_look()
    bound = choose_engine(options.engine).name != "llama-cpp-python"
    if bound and options.from_archive is not FromArchive.NEVER:
        if options.from_archive is FromArchive.ALWAYS:
            note("only llama-cpp-python reads a model out of its archive; it is installed")
        options = replace(options, from_archive=FromArchive.NEVER)
    source = prepare(
        Path(file), verify=options.verify, from_archive=options.from_archive, trust=options.trust,
        progress=progress, note=note,
    )  # fmt: skip
    source = replace(source, projector=projector_of(source, options.projector))
    ctx = _context(source.header, options.ctx, note, bound=bound)
    own = tuple(Adapter(path) for path in source.adapters) if options.own_adapters else ()
    adapters = own + options.adapters
    for adapter in adapters:
        check_adapter(adapter.path, source.header, source.path if is_gguf(source.path) else None)
    return source, OpenWish(
        device=options.device,
        n_ctx=ctx,
        kv_type=options.kv_type,
        n_gpu_layers=options.n_gpu_layers,
        threads=options.threads,
        adapters=adapters,
        trust=options.trust,
        engine=options.engine,
        beside=0 if source.projector is None else source.projector.stat().st_size,
    )


def _context(header: GGUFHeader, wanted: int | None, note: Callable[[str], object], *, bound: bool) -> int | None:
    """The context to open, with a note where the one asked for is beyond what the model states.

    The model's rope scaling is within that number, and llama.cpp applies it. Its server engine (`bound`) cuts every
    slot to that number (`n_ctx_slot` in tools/server/server-context.cpp), so memory for more would lie idle there.
    """
    name = header.get(keys.ARCHITECTURE)
    trained = header.get(f"{name}.context_length")
    if wanted is None or not isinstance(trained, int) or wanted <= trained:
        return wanted
    if any(tensor.name == _POSITIONS for tensor in header.tensors):
        return wanted  # a table ends: whoever opens the model refuses it
    scaling = header.get(f"{name}.rope.scaling.type", "none")
    reach = "" if scaling == "none" else f" (its {scaling} rope scaling counted)"
    made = f"--ctx {wanted}: the model was made for {trained} tokens{reach}"
    if bound:
        note(f"{made}, and the engine xllamacpp opens no more: it has {trained}")
        return trained
    note(f"{made}; beyond them answers get worse")
    return wanted


def adapters_of(given: Sequence[Adapter | FilePath]) -> tuple[Adapter, ...]:
    """Adapters as values; a path alone is applied as it was trained."""
    return tuple(item if isinstance(item, Adapter) else Adapter(Path(item)) for item in given)


def parse_adapter(text: str) -> Adapter:
    """`FILE` or `FILE:SCALE`; raises UsageError when it is neither."""
    name, colon, scale = text.rpartition(":")
    path, strength = Path(text), 1.0
    if colon and not path.is_file():
        try:
            path, strength = Path(name), float(scale)
        except ValueError:
            raise UsageError(f"adapter '{text}': expected FILE or FILE:SCALE") from None
    return Adapter(path, strength)
