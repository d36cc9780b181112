"""llama.cpp's mixtures: which role in which layer departs from a target's default type, and to what.

A transcription of `llama_tensor_get_type_impl` (llama.cpp src/llama-quant.cpp) into one function a role.
Overrides and fall-backs are left to `edgepack.quant.types.choice`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.gguf.types import GGMLType as T

if TYPE_CHECKING:
    from edgepack.quant.types.targets import Target

_IQ2_AND_BELOW = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M")
_EXPERT_OUTPUT = (
    "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """What the mixtures ask about a model.

    Attributes:
        architecture: `general.architecture`.
        n_layers: blocks in all.
        n_heads: query heads of the first layer.
        n_kv_heads: key-value heads of the first layer.
        n_experts: experts a layer, 0 when dense.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0

    @property
    def grouping(self) -> int:
        """Query heads for each key-value head."""
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp calls the model a 70B: its attention v gets at least Q5_K."""
        layers = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}.get(self.architecture)
        return self.n_layers == layers and (self.architecture != "llama" or self.n_heads != self.n_kv_heads)


@dataclass
class Counters:
    """How many tensors of a role came before, in llama.cpp's order. Changed by `mixed_type`."""

    n_attention_v: int
    tied: bool
    attention_v: int = 0
    ffn_down: int = 0
    ffn_gate: int = 0
    ffn_up: int = 0


@dataclass(frozen=True)
class _Case:
    """One tensor, with all that its role's rule may look at."""

    name: str
    shape: tuple[int, ...]
    label: str
    default: T
    facts: ModelFacts
    counters: Counters
    has_importance: bool

    def layer(self, counted: int) -> int:
        """The layer: counted, or read off the name where experts may lie in any order."""
        match = re.match(r"blk\.(\d+)\.", self.name) if self.facts.n_experts > 1 else None
        return int(match[1]) if match else counted


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers and every third between (`use_more_bits`)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def mixed_type(
    name: str,
    shape: tuple[int, ...],
    role: str,
    target: Target,
    facts: ModelFacts,
    counters: Counters,
    *,
    has_importance: bool,
    output: T | None = None,
) -> T:
    """The type that the mixture of `target` gives to one tensor; counts it in `counters`.

    Args:
        name: GGUF name.
        shape: row-major.
        role: name of a `type_choice.Role`.
        target: the file type.
        facts: the model.
        counters: tensors before this one, in llama.cpp's order.
        has_importance: whether an importance matrix is at hand.
        output: the user's type for the head, which tied embeddings take too.
    """
    case = _Case(name, shape, target.label, target.default, facts, counters, has_importance)
    if role == "OUTPUT" or (counters.tied and role == "TOKEN_EMBD"):
        return output if output is not None else _output(case)
    if case.label == "MXFP4_MOE":
        return T.MXFP4 if len(shape) == 3 and shape[0] > 1 else T.Q8_0
    if role == "TOKEN_EMBD":
        return _embedding(case)
    if case.label in _IQ2_AND_BELOW:
        return _iq2_and_below(case, role)
    rule = _RULES.get(role)
    return case.default if rule is None else rule(case)


def _output(case: _Case) -> T:
    if case.label == "MXFP4_MOE" or case.facts.architecture == "falcon" or case.shape[-1] % case.default.block_size:
        return T.Q8_0
    if case.label in (*_IQ2_AND_BELOW, "IQ3_XXS"):
        return T.Q5_K
    return T.Q8_0 if case.default is T.Q8_0 else T.Q6_K


def _embedding(case: _Case) -> T:
    if case.label in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
        return T.Q2_K
    if case.label in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        return T.IQ3_S
    return T.Q4_K if case.label in ("TQ1_0", "TQ2_0", "Q2_0") else case.default


def _iq2_and_below(case: _Case, role: str) -> T:
    """The files of about two bits: a few sensitive tensors get more."""
    larger = T.IQ3_S if case.label in ("IQ2_S", "IQ2_M") else T.Q2_K
    if role == "ATTENTION_V":
        case.counters.attention_v += 1
        return T.Q4_K if case.facts.grouping >= 4 or case.facts.n_experts >= 4 else larger
    if role == "ATTENTION_K" and case.facts.n_experts == 8:
        return T.Q4_K
    if role == "FFN_DOWN":
        case.counters.ffn_down += 1
        return larger if case.counters.ffn_down - 1 < case.facts.n_layers // 8 else case.default
    if role != "ATTENTION_OUTPUT":
        return case.default
    if case.facts.n_experts == 8:
        return T.Q5_K
    small = {"IQ1_S": T.IQ2_XXS, "IQ1_M": T.IQ2_XXS, "IQ2_S": T.IQ3_S, "IQ2_M": T.IQ3_S}
    return small.get(case.label, case.default)


def _attention_v(case: _Case) -> T:
    kind = _attention_v_by_target(case)
    if case.facts.is_70b and kind in (T.Q3_K, T.Q4_K):
        kind = T.Q5_K
    case.counters.attention_v += 1
    return T.Q8_0 if case.facts.n_experts == 8 else kind


def _attention_v_by_target(case: _Case) -> T:
    label, grouped, before = case.label, case.facts.grouping >= 4, case.counters.attention_v
    if label in ("Q4_K_M", "Q5_K_M"):
        return T.Q6_K if _more_bits(before, case.counters.n_attention_v) else case.default
    if label == "IQ3_XXS" and not grouped:
        return T.IQ3_XXS if case.has_importance else T.IQ3_S
    if label == "Q4_K_S":
        return T.Q5_K if before < 4 else case.default
    fixed = {"Q3_K_M": T.Q5_K if before < 2 else T.Q4_K, "IQ3_M": T.Q4_K, "Q3_K_L": T.Q5_K, "Q2_K": T.Q3_K}
    if grouped:
        fixed |= dict.fromkeys(("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), T.Q4_K)
        fixed |= dict.fromkeys(("IQ4_NL", "IQ4_XS"), T.Q5_K)
    return fixed.get(label, case.default)


def _attention_k(case: _Case) -> T:
    return T.Q8_0 if case.facts.n_experts == 8 else _attention_q(case)


def _attention_q(case: _Case) -> T:
    return {"IQ3_XS": T.IQ3_XXS, "IQ3_XXS": T.IQ2_S}.get(case.label, case.default)


def _ffn_down(case: _Case) -> T:
    layer, layers = case.layer(case.counters.ffn_down), case.facts.n_layers
    case.counters.ffn_down += 1
    falcon = case.facts.architecture == "falcon"
    early, more = layer < layers // 8, _more_bits(layer, layers)
    first = layer < layers // 16
    choices: dict[str, T] = {
        "Q2_K": T.Q3_K,
        "Q2_K_S": T.Q4_K if early else case.default,
        "Q3_K_M": T.Q5_K if first else T.Q4_K if not falcon or more else T.Q3_K,
        "IQ3_M": T.Q4_K if early or (case.facts.n_experts == 8 and more) else case.default,
        "Q3_K_L": T.Q4_K if falcon else T.Q5_K,
        "Q4_K_M": (T.Q6_K if first else T.Q5_K if more else T.Q4_K) if falcon else T.Q6_K if more else case.default,
        "Q5_K_M": T.Q6_K if more else case.default,
        "Q4_K_S": T.Q5_K if not falcon and early else case.default,
    }
    if case.has_importance:
        choices |= {"Q4_0": T.Q4_1, "Q5_0": T.Q5_1} if early else {}
    else:
        choices["IQ3_XXS"] = T.Q4_K if early else T.Q3_K
        choices |= dict.fromkeys(("IQ4_NL", "IQ4_XS"), T.Q5_K) if early else {}
    return choices.get(case.label, case.default)


def _attention_output(case: _Case) -> T:
    if case.facts.architecture == "falcon":
        return T.Q4_K if case.label == "Q3_K_L" else case.default
    if case.facts.n_experts == 8:
        return T.Q5_K if case.label in _EXPERT_OUTPUT else case.default
    dense = {"Q2_K": T.Q3_K, "IQ3_XXS": T.IQ3_S, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K, "IQ3_M": T.Q4_K}
    return dense.get(case.label, case.default)


def _ffn_gate(case: _Case) -> T:
    layer = case.layer(case.counters.ffn_gate)
    case.counters.ffn_gate += 1
    return _middle_layers(case, layer)


def _ffn_up(case: _Case) -> T:
    layer = case.layer(case.counters.ffn_up)
    case.counters.ffn_up += 1
    return _middle_layers(case, layer)


def _middle_layers(case: _Case, layer: int) -> T:
    layers = case.facts.n_layers
    middle = layers // 8 <= layer < 7 * layers // 8
    return T.IQ3_XXS if case.label == "IQ3_XS" and middle else case.default


_RULES = {
    "ATTENTION_V": _attention_v,
    "ATTENTION_K": _attention_k,
    "ATTENTION_Q": _attention_q,
    "FFN_DOWN": _ffn_down,
    "ATTENTION_OUTPUT": _attention_output,
    "FFN_GATE": _ffn_gate,
    "FFN_UP": _ffn_up,
}
