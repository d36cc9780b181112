"""How a model is opened and how its next token is chosen: values by llama.cpp's own names.

They say nothing of what a machine can hold (`fit` does) and call no library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgepack.errors import UsageError
from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.llama.engine import EngineWish
    from edgepack.packaging.trust.policy import TrustPolicy

# The types that llama.cpp accepts for K and V: kv_cache_types in common/arg.cpp.
KV_TYPES: dict[str, GGMLType] = {
    "f32": GGMLType.F32,
    "f16": GGMLType.F16,
    "bf16": GGMLType.BF16,
    "q8_0": GGMLType.Q8_0,
    "q4_0": GGMLType.Q4_0,
    "q4_1": GGMLType.Q4_1,
    "iq4_nl": GGMLType.IQ4_NL,
    "q5_0": GGMLType.Q5_0,
    "q5_1": GGMLType.Q5_1,
}


def kv_type(name: str) -> GGMLType:
    """The tensor type of a KV cache type's name; raises UsageError for an unknown one."""
    try:
        return KV_TYPES[name]
    except KeyError:
        raise UsageError(f"KV cache type '{name}': expected one of {', '.join(KV_TYPES)}") from None


def kv_types(name: str) -> tuple[str, str]:
    """The types of K and V that a cache's name says: `q8_0` is both, `q8_0/q4_0` is K's and V's.

    Raises:
        UsageError: an unknown type, or more than two.
    """
    k, slash, v = name.partition("/")
    both = (k, v if slash else k)
    for one in both:
        kv_type(one)
    return both


def kv_name(k: str, v: str) -> str:
    """The name of a cache: what `kv_types` reads."""
    return k if k == v else f"{k}/{v}"


@dataclass(frozen=True)
class Adapter:
    """A GGUF LoRA adapter and how strongly it is applied (1.0 is as trained)."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class RuntimeOptions:
    """How a model is opened.

    Attributes:
        n_ctx: tokens that the KV cache holds; 0 is the context that the model was trained with.
        n_batch: tokens handed to llama.cpp in one call.
        n_ubatch: tokens computed at once; never more than `n_batch`.
        threads: for generation; 0 is every physical core that this process may use.
        threads_batch: for prompts; 0 is the same as `threads`.
        kv_type_k, kv_type_v: a key of `KV_TYPES` each; a quantised V needs flash attention.
        n_gpu_layers: layers kept on the GPU, counted from the last; -1 is all.
        flash_attention: `auto` leaves it to llama.cpp.
        max_outputs: positions whose logits one batch may ask for; 0 is every position of `n_batch`. Generation
            needs 1, which saves n_ubatch rows of the vocabulary in the compute buffer.
        embeddings: return embeddings instead of logits.
        reranking: return a cross-encoder's scores instead.
        adapters: LoRA adapters, applied together.
        engine: which package runs it; `auto` takes llama-cpp-python where it is installed, else xllamacpp.
        adapt_threads: use fewer threads where the first tokens show that others use the cores.
        simulated: only plan memory: no weight is read, nothing can be evaluated.
        trust: whose archives are taken where a model is read out of one; the user's trust store by default.
    """

    n_ctx: int = 0
    n_batch: int = 512
    n_ubatch: int = 512
    threads: int = 0
    threads_batch: int = 0
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    n_gpu_layers: int = 0
    flash_attention: Literal["auto", "on", "off"] = "auto"
    max_outputs: int = 0
    embeddings: bool = False
    reranking: bool = False
    adapters: tuple[Adapter, ...] = ()
    simulated: bool = False
    trust: TrustPolicy | None = None
    engine: EngineWish = "auto"
    adapt_threads: bool = False


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen; names, order and defaults are llama.cpp's (common/common.h).

    Attributes:
        temperature: 0 takes the most probable token, whatever the other options say.
        top_k: keep the k most probable; 0 keeps all.
        top_p: keep the smallest set whose probability reaches p; 1.0 keeps all.
        min_p: drop what is less probable than p times the best; 0.0 drops none.
        typical_p: locally typical sampling; 1.0 is off.
        repeat_penalty: divides the logits of the last `repeat_last_n` tokens; 1.0 is off.
        repeat_last_n: tokens that count as recent; 0 is off.
        frequency_penalty, presence_penalty: as OpenAI defines them; 0.0 is off.
        seed: of the random draw; -1 draws a new one each time.
        grammar: GBNF text that the output must follow, or None.
        json_schema: text of a JSON schema that the output must follow, or None; not both.
        chances: tell, with each token, how likely it was beside so many of the likeliest; 0 tells nothing.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = -1
    grammar: str | None = None
    json_schema: str | None = None
    chances: int = 0
