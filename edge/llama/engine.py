"""The contract of an engine: what llama-cpp-python and xllamacpp both do with a model, in one set of words.

Values and protocols only. Which engine runs is chosen in `engines`; scores, importance and probes need logits, which
llama-cpp-python alone gives (`runtime.LoadedModel`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from edgepack.errors import ModelRuntimeError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from edgepack.edge.llama.chances import TokenChances
    from edgepack.edge.llama.interrupt import AbortFlag
    from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions

EngineName = Literal["llama-cpp-python", "xllamacpp"]
EngineWish = Literal["auto", "llama-cpp-python", "xllamacpp"]
ENGINE_WISHES: tuple[EngineWish, ...] = ("auto", "llama-cpp-python", "xllamacpp")
UNTOLD_TOKEN = -1


class StoppedError(ModelRuntimeError):
    """`abort` was set while llama.cpp computed."""


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token.

    Attributes:
        id: the token; `UNTOLD_TOKEN` where xllamacpp does not say which one ended inside a character.
        text: what it adds to the answer; empty while a multi-byte character is still incomplete.
        chances: how likely it was, where `SamplingOptions.chances` asks for it and the engine says it.
    """

    id: int
    text: str
    chances: TokenChances | None = None


class OpenModel(Protocol):
    """A GGUF in memory, ready to answer; not thread-safe. Use it in a `with` block or call `close`.

    Tokens that were evaluated are kept: of the next prompt only what differs is evaluated.
    """

    @property
    def path(self) -> Path:
        """The GGUF."""
        ...

    @property
    def options(self) -> RuntimeOptions:
        """How it was opened."""
        ...

    @property
    def abort(self) -> AbortFlag:
        """Setting it, from another thread or a signal handler, ends what is being generated."""
        ...

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        ...

    @property
    def n_ctx_train(self) -> int:
        """The context that the model was trained with."""
        ...

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        ...

    @property
    def n_embd(self) -> int:
        """Width of an embedding."""
        ...

    @property
    def threads(self) -> int:
        """Threads that generation uses."""
        ...

    @property
    def bos_text(self) -> str:
        """The spelling of the token that begins a text; empty where there is none."""
        ...

    def __enter__(self) -> Self:
        """The model itself."""
        ...

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        ...

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        ...

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            text: any text.
            add_special: put BOS (and EOS) where the vocabulary asks for them.
            parse_special: read `<|...|>` and their like as control tokens, not as text.
        """
        ...

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            tokens: ids of the vocabulary.
            special: print control tokens, which are silent otherwise.

        Raises:
            UsageError: an id outside the vocabulary.
        """
        ...

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
            token_ids: the prompt, 1 to `n_ctx` tokens.
            sampling: how tokens are chosen.
            max_tokens: not more than these; -1 is as many as the context holds.
            context_shift: when the context is full, forget the older half of what follows its first tokens and go on.

        Yields:
            Each token as it comes; the token that ends the turn is not among them.

        Raises:
            UsageError: the prompt is empty, longer than the context (both numbers are in the text) or has an id outside
                the vocabulary; a grammar or schema cannot be followed.
            ModelRuntimeError: llama.cpp fails.
        """
        ...

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The pooled embedding of `token_ids`, float32 [n_embd]; the model's pooling, else the mean.

        Raises:
            UsageError: no token, more than fit into a batch, or the model was not opened with `embeddings`.
        """
        ...

    def prompt_seconds(self, token_ids: Sequence[int]) -> float:
        """Seconds that evaluating a prompt takes, nothing of it kept from before; nothing is sampled."""
        ...

    def generation_seconds(self, token_ids: Sequence[int]) -> float:
        """Seconds that evaluating these tokens one after the other takes; an engine may take tokens of its own."""
        ...

    def relevance(self, query: str, document: str) -> float:
        """How well a document answers a query, as a cross-encoder sees it; the larger the better, any real number.

        Raises:
            UsageError: the model was not opened with `reranking`, or the two are longer than a batch.
        """
        ...


@dataclass(frozen=True)
class EngineFacts:
    """What `edgepack doctor` says of one engine.

    Attributes:
        name: as pip spells it.
        version: of the package.
        build: llama.cpp's version and the instruction sets that it was built for, as it spells them.
        devices: on which it computes.
        gpu: whether it can put layers on a GPU.
        limits: what it cannot do.
    """

    name: EngineName
    version: str
    build: str
    devices: tuple[str, ...]
    gpu: bool
    limits: tuple[str, ...]


class Engine(Protocol):
    """A package that runs GGUF files."""

    @property
    def name(self) -> EngineName:
        """As pip spells it."""
        ...

    def open(self, path: Path, options: RuntimeOptions, abort: AbortFlag | None = None) -> OpenModel:
        """Open a checked GGUF; `abort` set meanwhile ends opening with `StoppedError`.

        Raises:
            ModelRuntimeError: llama.cpp refuses the file, an adapter or the options; the text says why.
            UsageError: the engine cannot do what the options ask for.
        """
        ...

    def facts(self) -> EngineFacts:
        """What there is to say of it on this machine."""
        ...

    def has_gpu(self) -> bool:
        """Whether this build can put layers on a GPU: what `facts` says, without what is only told."""
        ...


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest beginning that both share."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))
