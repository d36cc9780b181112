"""Experts as transformers runs them: the matrices of all experts of a layer as one tensor, however they were published.

A published matrix an expert becomes rows of `…mlp.experts.gate_up_proj` [experts, 2 · width, d] (gates first) or
`…down_proj` [experts, d, width]. What is measured of a stack goes back to the names that the checkpoint has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.model import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.model import TensorSource

_MATRIX = re.compile(r"(.*)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(gate_proj|w1|up_proj|w3|down_proj|w2)\.weight")
_ROUTER = re.compile(r"(.*)\.block_sparse_moe\.gate\.weight")
_PLACES = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1}


@dataclass(frozen=True)
class ExpertPart:
    """Rows of a stack that are one expert's matrix.

    Attributes:
        name: of the matrix in the checkpoint; `TENSOR[E]` where the checkpoint has the stack itself.
        expert: its number.
        start, stop: rows of the expert's part of the stack, the last not included.
    """

    name: str
    expert: int
    start: int
    stop: int


class FusedExperts:
    """A source in which published experts are stacks too, under transformers' names; other tensors as they are.

    Args:
        base: the checkpoint's.
    """

    def __init__(self, base: TensorSource) -> None:
        self.base = base
        self._stacks: dict[str, dict[tuple[int, int], str]] = {}
        self._aliases: dict[str, str] = {}
        for name in base.specs:
            if (found := _MATRIX.fullmatch(name)) is not None:
                prefix, expert, kind = found.groups()
                target = "gate_up_proj" if kind in _PLACES else "down_proj"
                stack = self._stacks.setdefault(f"{prefix}.mlp.experts.{target}", {})
                stack[int(expert), _PLACES.get(kind, 0)] = name
            elif (found := _ROUTER.fullmatch(name)) is not None:
                self._aliases[f"{found[1]}.mlp.gate.weight"] = name

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Those of the base and of the stacks."""
        found = dict(self.base.specs)
        for alias, name in self._aliases.items():
            found[alias] = TensorSpec(alias, found[name].shape, found[name].dtype)
        for stack, parts in self._stacks.items():
            first = self.base.specs[next(iter(parts.values()))]
            experts = 1 + max(expert for expert, _ in parts)
            rows = sum(self.base.specs[name].rows for (expert, _), name in parts.items() if expert == 0)
            found[stack] = TensorSpec(stack, (experts, rows, first.columns), first.dtype)
        return found

    def parts(self, name: str) -> list[ExpertPart]:
        """The experts' matrices of a tensor [experts, rows, columns], in order."""
        experts, rows = self.specs[name].shape[:2]
        if name not in self._stacks:
            return [ExpertPart(f"{name}[{expert}]", expert, 0, rows) for expert in range(experts)]
        found: list[ExpertPart] = []
        for (expert, _place), matrix in sorted(self._stacks[name].items()):
            start = found[-1].stop if found and found[-1].expert == expert else 0
            found.append(ExpertPart(matrix, expert, start, start + self.base.specs[matrix].rows))
        return found

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        if name not in self._stacks:
            return self.base.read_rows(self._aliases.get(name, name), start, stop)
        per, pieces = prod(self.specs[name].shape[1:-1]), []
        for part in self.parts(name):
            first, last = max(start, part.expert * per + part.start), min(stop, part.expert * per + part.stop)
            if first < last:
                offset = part.expert * per + part.start
                pieces.append(self.base.read_rows(part.name, first - offset, last - offset))
        return np.concatenate(pieces) if pieces else np.zeros((0, self.specs[name].columns), np.float32)
