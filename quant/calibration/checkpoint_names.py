"""What the checkpoint calls the parameters of a model of transformers, and parameters that it holds in several tensors.

transformers' own table of conversions decides (`transformers.conversion_mapping`): experts that were published one by
one are one stack in its modules, routers and prefixes have other names. Reading weights into modules is `blocks`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.model import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from edgepack.model import TensorSource

    Stack = list[list[str]]  # names by expert: those of one expert stand one below the other


@dataclass(frozen=True)
class StackedTensors:
    """A source in which stacks of experts are tensors too: a `TensorSource`. Does not modify `base`.

    Attributes:
        base: the checkpoint.
        stacks: name → names of the parts of every expert.
    """

    base: TensorSource
    stacks: Mapping[str, Stack]
    _specs: dict[str, TensorSpec] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._specs.update(self.base.specs)
        self._specs.update({name: self._spec(name, stack) for name, stack in self.stacks.items()})

    def _spec(self, name: str, stack: Stack) -> TensorSpec:
        shapes = [[self.base.specs[part].shape for part in parts] for parts in stack]
        if any(each != shapes[0] for each in shapes) or len({shape[1:] for shape in shapes[0]}) != 1:
            raise CheckpointError(f"'{name}': expected experts of one shape, got {shapes[0]} and others")
        rows = sum(shape[0] for shape in shapes[0])
        return TensorSpec(name, (len(stack), rows, *shapes[0][0][1:]), self.base.specs[stack[0][0]].dtype)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The base's, then the stacks."""
        return self._specs

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        if name not in self.stacks:
            return self.base.read_rows(name, start, stop)
        pieces = [self.base.read_rows(part, *span) for part, span in self._touched(self.stacks[name], start, stop)]
        return np.concatenate(pieces)

    def _touched(self, stack: Stack, start: int, stop: int) -> Iterator[tuple[str, tuple[int, int]]]:
        at = 0
        for part in (part for parts in stack for part in parts):
            rows = self.base.specs[part].rows
            first, last = max(start - at, 0), min(stop - at, rows)
            if first < last:
                yield part, (first, last)
            at += rows


@dataclass(frozen=True)
class ExpertPart:
    """Rows of a stack that are one expert's matrix.

    Attributes:
        name: of the matrix in the checkpoint; `TENSOR[E]` where the checkpoint has the stack itself.
        expert: its number.
        start: first row of the expert's part of the stack.
        stop: the row after its last.
    """

    name: str
    expert: int
    start: int
    stop: int


def expert_parts(source: TensorSource, name: str) -> list[ExpertPart]:
    """The experts' matrices of a tensor [experts, rows, columns] of `source`, in order."""
    experts, rows = source.specs[name].shape[:2]
    if not isinstance(source, StackedTensors) or name not in source.stacks:
        return [ExpertPart(f"{name}[{expert}]", expert, 0, rows) for expert in range(experts)]
    found: list[ExpertPart] = []
    for expert, parts in enumerate(source.stacks[name]):
        start = 0
        for part in parts:
            found.append(ExpertPart(part, expert, start, start + source.base.specs[part].rows))
            start = found[-1].stop
    return found


def checkpoint_names(model: nn.Module, source: TensorSource) -> tuple[dict[str, str], TensorSource]:
    """Parameter path → name, and the source that has a tensor of each name.

    Raises:
        CheckpointError: a parameter that is nowhere in the checkpoint.
    """
    prefix, names, missing = f"{model.base_model_prefix}.", {}, []
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for path, _ in model.named_parameters(remove_duplicate=False):
        spellings: Sequence[str] = (path, path.removeprefix(prefix), prefix + path)
        name = next((spelling for spelling in spellings if spelling in source.specs), None)
        if name is not None:
            names[path] = name
        elif path not in tied:
            missing.append(path)
    if not missing:
        return names, source
    renamed, stacks = _converted(model, source, missing)
    left = [path for path in missing if path not in renamed and path not in stacks]
    if left:
        raise CheckpointError(f"the checkpoint has no tensor for '{left[0]}' ({len(left)} missing in all)")
    return names | renamed | {path: path for path in stacks}, StackedTensors(source, stacks)


def _converted(
    model: nn.Module, source: TensorSource, missing: Iterable[str]
) -> tuple[dict[str, str], dict[str, Stack]]:
    """Of parameters that no tensor is called after: those that have one of another name, and those made of several."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    paths = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, dict[str | None, list[str]]] = {path: {} for path in missing}
    for name in sorted(source.specs, key=dot_natural_key):
        path, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, paths)
        if path in found:
            found[path].setdefault(pattern, []).append(name)
    renamed = {path: parts[None][0] for path, parts in found.items() if list(parts) == [None] and len(parts[None]) == 1}
    orders = {pattern: each for each in converters if _stacks(each) for pattern in each.source_patterns}
    stacks = {}
    for path, parts in found.items():
        converter = orders.get(next(iter(parts), None))
        if converter is not None and set(parts) == set(converter.source_patterns):
            columns = [parts[pattern] for pattern in converter.source_patterns]
            if len({len(column) for column in columns}) == 1:
                stacks[path] = [list(each) for each in zip(*columns, strict=True)]
    return renamed, stacks


def _stacks(converter: Any) -> bool:
    """Whether a conversion stacks experts, and where it has several matrices an expert puts them below each other."""
    kinds = [(type(each).__name__, getattr(each, "dim", None)) for each in converter.operations]
    return kinds in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)])
