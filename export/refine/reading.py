"""How much of each tensor a generated token reads: what the speed of a file depends on, as `edge.fit.speed` has it.

What speed is worth is `model`'s to decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.export.mapped import MappedModel

_LOOKED_UP = frozenset({"per_layer_token_embd.weight"})  # one row a token


def read_share(name: str, model: MappedModel) -> float:
    """The share of a tensor's bytes that one token reads: 1 but for tables that are looked up, and experts.

    Args:
        name: in the GGUF.
        model: the file's metadata and tensors.
    """
    if name in _LOOKED_UP or (name == "token_embd.weight" and "output.weight" in model.tensors):
        return 0.0
    if "_exps." in name:
        counts = [model.metadata.get(f"{model.facts.architecture}.{key}") for key in
                  ("expert_used_count", "expert_count")]  # fmt: skip
        used, every = (0 if count is None or isinstance(count.value, list) else int(count.value) for count in counts)
        return used / every if used and every else 1.0
    return 1.0
