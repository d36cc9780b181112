"""Chooses each tensor's type for a target exactly as llama.cpp's quantiser does.

Source of every rule: `llama_tensor_get_type` and its neighbours in llama.cpp's src/llama-quant.cpp; a test
holds the result against `llama_model_quantize`. It quantises nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from math import prod
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.expressions import ExpressionError, expression
from edgepack.gguf.types import GGMLType
from edgepack.quant.types.mixtures import Counters, ModelFacts, mixed_type
from edgepack.quant.types.targets import find_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.quant.types.targets import Target

# Tensors that stay as they are: names that contain one of these (`tensor_allows_quantization`).
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight",
    "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_KEPT_WHOLE = ("position_embd.weight", "token_types.weight")
_FALLBACK = {
    **dict.fromkeys(
        (GGMLType.IQ1_S, GGMLType.IQ1_M, GGMLType.IQ2_XXS, GGMLType.IQ2_XS, GGMLType.IQ2_S, GGMLType.IQ3_XXS,
         GGMLType.IQ3_S, GGMLType.IQ4_XS), GGMLType.IQ4_NL),
    **dict.fromkeys(
        (GGMLType.Q2_0, GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.TQ1_0, GGMLType.TQ2_0), GGMLType.Q4_0),
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q6_K: GGMLType.Q8_0,
}  # fmt: skip
# These types cannot be quantised without an importance matrix, except for embeddings and the head.
_IMPORTANCE_NEEDED = frozenset(
    (GGMLType.IQ3_XXS, GGMLType.IQ2_XXS, GGMLType.IQ2_XS, GGMLType.IQ2_S, GGMLType.IQ1_M, GGMLType.IQ1_S)
)


class Role(Enum):
    """What a tensor does, as far as the choice of its type cares (`tensor_category`)."""

    TOKEN_EMBD = auto()
    ATTENTION_Q = auto()
    ATTENTION_V = auto()
    ATTENTION_K = auto()
    ATTENTION_OUTPUT = auto()
    FFN_UP = auto()
    FFN_GATE = auto()
    FFN_DOWN = auto()
    OUTPUT = auto()
    OTHER = auto()


# The first that occurs in the name decides; fused and latent projections count as attention v.
_ROLES = (
    ("attn_qkv.weight", Role.ATTENTION_V), ("attn_kv_b.weight", Role.ATTENTION_V), ("attn_v.weight", Role.ATTENTION_V),
    ("attn_k.weight", Role.ATTENTION_K), ("attn_q.weight", Role.ATTENTION_Q),
    ("attn_output.weight", Role.ATTENTION_OUTPUT), ("ffn_up", Role.FFN_UP), ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A tensor whose type is to be chosen.

    Attributes:
        name: GGUF name.
        shape: row-major.
        source: the type it has now, kept where nothing may be quantised.
    """

    name: str
    shape: tuple[int, ...]
    source: GGMLType


@dataclass(frozen=True)
class Overrides:
    """What the user decides instead of the target's mixture.

    Attributes:
        patterns: (regular expression, type), the first that matches anywhere in the name wins.
        output: type of `output.weight`, and of tied embeddings.
        embedding: type of `token_embd.weight`.
        pure: no mixture: every matrix gets the target's default type.
        leave_output: `output.weight` stays as it is.
    """

    patterns: tuple[tuple[str, GGMLType], ...] = ()
    output: GGMLType | None = None
    embedding: GGMLType | None = None
    pure: bool = False
    leave_output: bool = False

    def matching(self, name: str) -> GGMLType | None:
        """The type of the first pattern that matches, or None."""
        return next((kind for pattern, kind in self.patterns if _found(pattern, name)), None)


def parse_overrides(
    tensor_types: Sequence[str], *, output: str | None = None, embedding: str | None = None, pure: bool = False
) -> Overrides:
    """What people write of types: `REGEX=TYPE` texts and names of types.

    Raises:
        UsageError: an expression or a type that is none.
    """
    return Overrides(
        tuple(map(_pattern, tensor_types)),
        output=find_type(output) if output else None,
        embedding=find_type(embedding) if embedding else None,
        pure=pure,
    )


def _found(pattern: str, name: str) -> bool:
    """Whether an option's expression is found in a tensor's name; raises UsageError where that takes too long."""
    try:
        return expression(pattern).search(name)
    except ExpressionError as error:
        raise UsageError(f"--tensor-type '{pattern}': {error}") from None


def _pattern(text: str) -> tuple[str, GGMLType]:
    pattern, equals, kind = text.rpartition("=")
    if not equals:
        raise UsageError(f"--tensor-type '{text}': expected REGEX=TYPE, such as ffn_down=q6_k")
    try:
        expression(pattern)
    except ExpressionError as error:
        raise UsageError(f"--tensor-type '{text}': {error}") from error
    return pattern, find_type(kind)


def role_of(name: str) -> Role:
    """The role of the tensor called `name`."""
    if name == "output.weight":
        return Role.OUTPUT
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return Role.TOKEN_EMBD
    return next((role for part, role in _ROLES if part in name), Role.OTHER)


def llama_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's loader: tensors outside blocks, then block by block, each by name."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


def may_be_quantised(candidate: Candidate, overrides: Overrides = Overrides()) -> bool:
    """Whether llama.cpp would quantise this tensor at all."""
    name = candidate.name
    dimensions = len(candidate.shape) - next((i for i, n in enumerate(candidate.shape) if n > 1), len(candidate.shape))
    if dimensions < 2 or not name.endswith("weight") or name in _KEPT_WHOLE:
        return False
    if overrides.leave_output and name == "output.weight":
        return False
    return not any(part in name for part in _KEPT)


def needs_importance_matrix(name: str, kind: GGMLType, target: Target) -> bool:
    """Whether llama.cpp refuses to make `name` a `kind` without an importance matrix."""
    if role_of(name) in (Role.TOKEN_EMBD, Role.OUTPUT):
        return False
    return kind in _IMPORTANCE_NEEDED or (kind is GGMLType.Q2_K and target.label == "Q2_K_S")


def choose_types(
    candidates: Sequence[Candidate],
    target: Target,
    facts: ModelFacts,
    overrides: Overrides = Overrides(),
    *,
    has_importance: bool = False,
) -> dict[str, GGMLType]:
    """The type of every tensor of a file of type `target`; order of `candidates` does not matter.

    Raises:
        UsageError: an override names a type that cannot hold the tensor's rows.
    """
    _refuse_idle_patterns(candidates, overrides)
    ordered = sorted(candidates, key=lambda candidate: llama_order(candidate.name))
    roles = [role_of(candidate.name) for candidate in ordered]
    counters = Counters(n_attention_v=roles.count(Role.ATTENTION_V), tied=Role.OUTPUT not in roles)
    chosen = {}
    for candidate, role in zip(ordered, roles, strict=True):
        kind = candidate.source
        if may_be_quantised(candidate, overrides):
            kind = _choose(candidate, role, target, facts, overrides, counters, has_importance)
        if prod(candidate.shape) and candidate.shape[-1] % kind.block_size:
            raise UsageError(
                f"tensor '{candidate.name}': type {kind.name} needs rows of a multiple of {kind.block_size},"
                f" got {candidate.shape[-1]}"
            )
        chosen[candidate.name] = kind
    return chosen


def _refuse_idle_patterns(candidates: Sequence[Candidate], overrides: Overrides) -> None:
    """Raise UsageError where a pattern matches no tensor whose type can be chosen: it says what was not meant."""
    for pattern, _ in overrides.patterns:
        matching = [candidate for candidate in candidates if _found(pattern, candidate.name)]
        if not matching:
            raise UsageError(f"--tensor-type '{pattern}': matches no tensor; names are such as {_examples(candidates)}")
        if not any(may_be_quantised(candidate, overrides) for candidate in matching):
            name = matching[0].name
            raise UsageError(f"--tensor-type '{pattern}': matches only tensors that keep their type, such as '{name}'")


def _examples(candidates: Sequence[Candidate]) -> str:
    names = [candidate.name for candidate in candidates if may_be_quantised(candidate)]
    return ", ".join(f"'{name}'" for name in sorted(names, key=llama_order)[:3]) or "none"


def _choose(
    candidate: Candidate,
    role: Role,
    target: Target,
    facts: ModelFacts,
    overrides: Overrides,
    counters: Counters,
    has_importance: bool,
) -> GGMLType:
    """`llama_tensor_get_type`: explicit choices first, then the mixture, then the fall-back for odd rows."""
    named = overrides.matching(candidate.name)
    per_layer = candidate.name == "per_layer_token_embd.weight"
    if role is Role.TOKEN_EMBD and overrides.embedding is not None and not (per_layer and named is not None):
        return overrides.embedding
    if role is Role.OUTPUT and overrides.output is not None:
        return overrides.output
    kind = target.default
    if not kind.is_quantized:
        return kind
    if named is not None:
        kind = named
    elif not overrides.pure:
        kind = mixed_type(
            candidate.name, candidate.shape, role.name, target, facts, counters,
            has_importance=has_importance, output=overrides.output,
        )  # fmt: skip
    return fallback(kind, candidate.shape[-1])


def fallback(kind: GGMLType, columns: int) -> GGMLType:
    """`kind`, or what llama.cpp takes in its place for rows that are not a multiple of its block."""
    if columns % kind.block_size == 0:
        return kind
    if kind.block_size > 32 and kind not in _FALLBACK:
        raise UsageError(f"type {kind.name} needs rows of a multiple of {kind.block_size}, got {columns}")
    smaller = _FALLBACK.get(kind, kind)
    return smaller if columns % smaller.block_size == 0 else GGMLType.F16
