"""Which scales of a graph cancel: where a column's step can be folded exactly into the weights before it.

Knowledge of graphs as data, by GGUF names. A norm's weight times u and its readers' columns over u, or a matrix's
rows times u and the next matrix's columns over u, leave the function as it was. What u is, is left to `wire`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgepack.quant.types.mixtures import ModelFacts

# Graphs of llama.cpp in which these norms feed these matrices and nothing else, and gates are products.
_GRAPHS = frozenset(("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "mistral3", "smollm3"))
_NORMS = {
    "attn_norm": (("attn_q", "attn_k", "attn_v"), ("attn_qkv",)),
    "ffn_norm": (("ffn_gate", "ffn_up"), ("ffn_up",)),
}
_OTHER_READERS = {"ffn_norm": ("ffn_gate_inp", "ffn_gate_exps"), "attn_norm": ("ssm_in",)}


@dataclass(frozen=True)
class InputGroup:
    """Matrices of one layer that read the same input.

    Attributes:
        members: GGUF names of the matrices.
        norm: GGUF name (without `.weight`) of the norm that their columns fold into, or None.
        producer: GGUF name of the matrix whose rows their columns fold into, or None.
        repeats: consecutive groups of columns that read the same row of the producer: query heads a key-value head.
        width: columns in such a group (the head width); 0 where columns and rows correspond one to one.
    """

    members: tuple[str, ...]
    norm: str | None = None
    producer: str | None = None
    repeats: int = 1
    width: int = 0


def input_groups(names: Collection[str], matrices: Collection[str], facts: ModelFacts, head: int) -> list[InputGroup]:
    """The input groups of a layer, or of the tensors outside layers.

    Args:
        names: every tensor of the layer (or outside layers).
        matrices: those that go onto grids, in file order.
        facts: of the model.
        head: width of a value head, 0 where it is not known.
    """
    prefix = next((name.rsplit(".", 2)[0] + "." for name in names if name.startswith("blk.")), "")
    has = {name.removeprefix(prefix).removesuffix(".weight") for name in names}
    groups: list[InputGroup] = []
    if facts.architecture in _GRAPHS:
        groups += _norm_groups(prefix, has)
        if {"ffn_gate", "ffn_up", "ffn_down"} <= has:
            groups.append(InputGroup((f"{prefix}ffn_down.weight",), producer=f"{prefix}ffn_up.weight"))
        if head and {"attn_v", "attn_output"} <= has and "attn_sub_norm" not in has:
            repeats = facts.n_heads // max(1, facts.n_kv_heads)
            groups.append(InputGroup((f"{prefix}attn_output.weight",), None, f"{prefix}attn_v.weight", repeats, head))
        if not prefix and {"output", "output_norm"} <= has:
            groups.append(InputGroup(("output.weight",), "output_norm"))
    groups = [group for group in groups if all(member in matrices for member in group.members)]
    placed = {member for group in groups for member in group.members}
    return [*groups, *(InputGroup((name,)) for name in matrices if name not in placed)]


def _norm_groups(prefix: str, has: set[str]) -> list[InputGroup]:
    groups = []
    for norm, alternatives in _NORMS.items():
        if norm not in has or any(reader in has for reader in _OTHER_READERS[norm]):
            continue
        members = next((choice for choice in alternatives if set(choice) <= has), None)
        if members is not None and not (members == ("attn_qkv",) and "attn_q" in has):
            groups.append(InputGroup(tuple(f"{prefix}{member}.weight" for member in members), prefix + norm))
    return groups
