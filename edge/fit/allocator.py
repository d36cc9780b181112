"""Replays how ggml places a graph's tensors in one buffer, and says how large the buffer becomes.

It knows sizes and order only; what the tensors are is left to `fit_graph`. The rules are those of
`ggml_gallocr_alloc_graph_impl` and `ggml_dyn_tallocr_alloc` (ggml/src/ggml-alloc.c): inputs first, then each
node in order; some operations take over the memory of a source that nobody else needs; otherwise the smallest
free block that is large enough, and only then the end of the buffer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ALIGNMENT = 64  # TENSOR_ALIGNMENT of the CPU buffer type
_ENDLESS = 2**62


@dataclass(eq=False)
class Node:
    """One tensor of a graph.

    Attributes:
        nbytes: its size; 0 for a tensor that lives elsewhere (weights, KV cache).
        sources: what it is computed from.
        layout: two tensors with equal layouts may share memory; None never does.
        in_place: the operation may write over a source.
        view_of: the tensor whose memory this one looks at, never itself a view.
        is_input, is_output: inputs are placed before everything else; outputs are never freed.
    """

    nbytes: int
    sources: Sequence[Node] = ()
    layout: tuple[int, ...] | None = None
    in_place: bool = False
    view_of: Node | None = None
    is_input: bool = False
    is_output: bool = False
    children: int = field(default=0, init=False)
    views: int = field(default=0, init=False)
    offset: int | None = field(default=None, init=False)


class _FreeList:
    """Free blocks in the order of their offsets; the last one is endless."""

    def __init__(self) -> None:
        self.blocks: list[list[int]] = [[0, _ENDLESS]]
        self.high_water = 0

    def take(self, size: int) -> int:
        fitting = [block for block in self.blocks[:-1] if block[1] >= size]
        # Of equally small blocks the last one, as ggml compares with <=.
        block = min(reversed(fitting), key=lambda block: block[1]) if fitting else self.blocks[-1]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            self.blocks.remove(block)
        self.high_water = max(self.high_water, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        self.blocks = sorted([*self.blocks, [offset, size]])
        merged: list[list[int]] = []
        for block in self.blocks:
            if merged and merged[-1][0] + merged[-1][1] == block[0]:
                merged[-1][1] += block[1]
            else:
                merged.append(block)
        self.blocks = merged


def buffer_bytes(nodes: Iterable[Node]) -> int:
    """Bytes that ggml reserves for `nodes`, given in execution order (views among them)."""
    order = list(nodes)
    free = _FreeList()
    for node in order:
        if node.is_input:
            _place(node, free)
        if node.view_of is not None:
            node.view_of.views += 1
        for source in node.sources:
            source.children += 1
            if source.is_input:
                _place(source, free)
    for node in order:
        for source in node.sources:
            _place(source, free)
        _place(node, free)
        for source in node.sources:
            _release(source, free)
    return free.high_water


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _place(node: Node, free: _FreeList) -> None:
    if node.offset is not None or node.view_of is not None or not node.nbytes:
        return
    if node.in_place and (source := _replaceable(node)) is not None:
        node.offset, source.offset = source.offset, None
        return
    node.offset = free.take(_aligned(node.nbytes))


def _replaceable(node: Node) -> Node | None:
    """The first source whose memory `node` may take over; ggml never does so through a view."""
    for source in node.sources:
        alone = source.children == 1 and source.views == 0 and source.view_of is None
        if alone and source.offset is not None and not source.is_output and source.layout == node.layout is not None:
            return source
    return None


def _release(source: Node, free: _FreeList) -> None:
    source.children -= 1
    if source.children or source.views:
        return
    owner = source
    if source.view_of is not None:
        owner = source.view_of
        owner.views -= 1
        if owner.views or owner.children:
            return
    if owner.offset is not None and not owner.is_output:
        free.give(owner.offset, _aligned(owner.nbytes))
        owner.offset = None
