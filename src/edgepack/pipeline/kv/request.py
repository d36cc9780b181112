"""What is asked of a study of caches. Doing it is `study`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.kv.sizes import BASELINE, USUAL
from edgepack.edge.kv.table import MAX_KL
from edgepack.edge.llama.options import kv_name, kv_types
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.packaging.trust.policy import TrustPolicy
    from edgepack.pipeline.located import LocatedModel

DEFAULT_CTX, DEFAULT_CHUNKS = 512, 8
LEAST_CHUNKS = 2  # one chunk has no interval, so that no cache would surely be within a bound
LONGEST_NAME = 200  # characters of a text's name, as the table keeps it


@dataclass(frozen=True)
class KvRequest:
    """A study.

    Attributes:
        model: a GGUF, an `.edgepack` or a Hugging Face folder.
        text: what is read.
        ctx: tokens of a chunk; the second half of each is scored.
        chunks: at most so many.
        types: names of caches, as `kv_types` reads them; the baseline is measured in any case.
        dims: dimensions of caches that a projection would give, each measured too.
        max_kl: nats that a device may lose by its cache, as the file is to state.
        original: the checkpoint that a file was made of, of one at a URL the folder of its small files; None for a
            folder, which is one.
        spectra: whether spectra are taken; None where the model can be read as a checkpoint and torch is there.
        output: a file with the table; None stores nothing.
        work: folder of what an interrupted study goes on from; None keeps nothing.
        threads: of the CPU; 0 is every core that is free.
        n_gpu_layers: llama.cpp's layers on the GPU; -1 is all.
        device: torch's, of spectra.
        trust: whose archives are taken; the user's trust store by default.
        located: an original at a URL.
    """

    model: Path
    text: Path
    ctx: int = DEFAULT_CTX
    chunks: int = DEFAULT_CHUNKS
    types: tuple[str, ...] = USUAL
    dims: tuple[int, ...] = ()
    max_kl: float = MAX_KL
    original: Path | None = None
    spectra: bool | None = None
    output: Path | None = None
    work: Path | None = None
    threads: int = 0
    n_gpu_layers: int = 0
    device: str = "cpu"
    trust: TrustPolicy | None = None
    located: LocatedModel | None = None

    def __post_init__(self) -> None:
        if self.ctx < 4:
            raise UsageError(f"kv: expected a context of at least 4 tokens, got {self.ctx}")
        if self.chunks < LEAST_CHUNKS:
            raise UsageError(f"kv: expected at least {LEAST_CHUNKS} chunks, for an interval, got {self.chunks}")
        if not self.max_kl > 0 or self.max_kl == float("inf"):
            raise UsageError(f"kv: expected a bound above 0 nats, got {self.max_kl}")
        if bad := [k for k in self.dims if k < 1]:
            raise UsageError(f"kv: dimensions of a cache: expected at least 1, got {bad[0]}")
        if self.dims and self.spectra is False:
            raise UsageError(
                "kv: dimensions of a cache are measured on the spectra's directions: leave out one of both"
            )
        for name in self.types:
            kv_types(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The caches to measure, each once, the baseline first."""
        return tuple(dict.fromkeys((BASELINE, *(kv_name(*kv_types(name)) for name in self.types))))
