"""The tensors of one evaluation of a transformer, in llama.cpp's order: what the compute buffer has to hold.

Sizes follow llama.cpp's src/llama-graph.cpp (build_qkv, build_attn, build_ffn, build_moe_ffn) and
src/models/*.cpp. Where memory goes is left to `fit_allocator`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.fit.allocator import Node

if TYPE_CHECKING:
    from edgepack.edge.fit.shape import LayerShape, ModelShape

_F32, _F16, _I32, _I64 = 4, 2, 4, 8


@dataclass(frozen=True)
class GraphSize:
    """What decides the sizes of one evaluation.

    Attributes:
        n_tokens: evaluated at once (n_ubatch).
        n_outputs: rows of logits.
        n_kv: cells of the full KV cache; `n_kv_window` of the sliding one.
        flash_attention: attention without the matrix of scores.
        rotated_k, rotated_v: side of the Hadamard matrix that llama.cpp rotates a quantised K or V with, 0 for none.
    """

    n_tokens: int
    n_outputs: int
    n_kv: int
    n_kv_window: int
    flash_attention: bool
    rotated_k: int = 0
    rotated_v: int = 0


class GraphBuilder:
    """Appends the nodes of one evaluation to `nodes`, layer by layer."""

    def __init__(self, shape: ModelShape, size: GraphSize) -> None:
        self.shape = shape
        self.size = size
        self.nodes: list[Node] = []
        tokens = size.n_tokens
        self._positions = _input(tokens * _I32)
        self._outputs = _input(size.n_outputs * _I32)
        kinds = {layer.windowed for layer in shape.layers}  # each kind has a cache, a mask and indices of its own
        v_index = tokens if size.flash_attention else tokens * max(layer.v for layer in shape.layers)
        self._k_index = {kind: _input(tokens * _I64) for kind in kinds}
        self._v_index = {kind: _input(v_index * _I64) for kind in kinds}
        cell = tokens * (_F16 if size.flash_attention else _F32)
        self._masks = {kind: _input(cell * (size.n_kv_window if kind else size.n_kv)) for kind in kinds}
        self._rotate_k = {kind: _input(size.rotated_k**2 * _F32) for kind in kinds if size.rotated_k}
        self._rotate_v = {kind: _input(size.rotated_v**2 * _F32) for kind in kinds if size.rotated_v}

    def build(self) -> list[Node]:
        """All nodes in execution order."""
        # Embeddings instead of tokens: an input that llama.cpp always reserves and a text model never uses.
        self._add(_input(self.size.n_tokens * self.shape.width * _F32))
        stream = self._op(self.shape.width, _input(self.size.n_tokens * _I32))
        if self.shape.position_embedding:
            stream = self._in_place(stream, self._op(self.shape.width, self._positions))
        for layer in self.shape.layers[:-1]:
            stream = self._layer(layer, stream, self.size.n_tokens, last=False)
        stream = self._layer(self.shape.layers[-1], stream, self.size.n_tokens, last=True)
        normed = self._norm(stream, self.size.n_outputs)
        logits = self._op(self.shape.n_vocab, normed, rows=self.size.n_outputs)
        if self.shape.scaled_logits:
            logits = self._in_place(logits)
        logits.is_output = True
        return self.nodes

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def _op(self, width: int, *sources: Node, rows: int | None = None) -> Node:
        """A new F32 tensor [rows, width] that cannot take over a source's memory."""
        count = width * (self.size.n_tokens if rows is None else rows)
        return self._add(Node(count * _F32, sources, layout=(count,)))

    def _in_place(self, *sources: Node) -> Node:
        """An operation that keeps its first source's shape and may write over it."""
        first = sources[0]
        return self._add(Node(first.nbytes, sources, layout=first.layout, in_place=True))

    def _view(self, source: Node, count: int | None = None) -> Node:
        """Another look at a source's memory; `count` values of it where it is only a part."""
        root = source.view_of or source
        layout = source.layout if count is None else None
        nbytes = source.nbytes if count is None else count * _F32
        return self._add(Node(nbytes, (source,), layout=layout, view_of=root))

    def _norm(self, source: Node, rows: int) -> Node:
        """RMSNorm may write over its source, LayerNorm may not; then the scale, in place."""
        if self.shape.layer_norm:
            return self._in_place(self._op(self.shape.width, source, rows=rows))
        return self._in_place(self._in_place(source))

    def _layer(self, layer: LayerShape, stream: Node, rows: int, *, last: bool) -> Node:
        stream.layout = (rows * self.shape.width,)
        attended = self._attention(layer, stream)
        if last:
            rows = self.size.n_outputs
            attended = self._op(self.shape.width, attended, self._outputs, rows=rows)
            stream = self._op(self.shape.width, stream, self._outputs, rows=rows)
        if layer.post_norm:
            attended = self._norm(attended, rows)
        stream = self._in_place(attended, stream)
        normed = self._norm(stream, rows)
        experts = self.shape.experts
        inner = self._experts(layer, normed, rows) if experts else self._feed_forward(layer, normed, rows)
        if layer.post_norm:
            inner = self._norm(inner, rows)
        # Which of the two the sum overwrites depends on the order in which the architecture's graph names them.
        return self._in_place(stream, inner) if self.shape.architecture == "phi3" else self._in_place(inner, stream)

    def _attention(self, layer: LayerShape, stream: Node) -> Node:
        normed = self._norm(stream, self.size.n_tokens)
        query, key, value = self._fused(layer, normed) if layer.fused_qkv else self._separate(layer, normed)
        self._add(Node(0, (key, self._k_index[layer.windowed])))
        self._add(Node(0, (value, self._v_index[layer.windowed])))
        mixed = self._mix(layer, self._view(query))
        return self._op(self.shape.width, self._rotated(mixed, self._rotate_v, layer, layer.q))

    def _rotated(self, source: Node, matrices: dict[bool, Node], layer: LayerShape, width: int) -> Node:
        """The Hadamard rotation that goes with a quantised cache, where there is one."""
        return self._op(width, matrices[layer.windowed], source) if matrices else source

    def _separate(self, layer: LayerShape, normed: Node) -> tuple[Node, Node, Node]:
        query = self._rope(self._view(self._op(layer.q, normed)), layer, layer.q)
        value = self._rotated(self._view(self._op(layer.v, normed)), self._rotate_v, layer, layer.v)
        return query, self._rope(self._view(self._op(layer.k, normed)), layer, layer.k), value

    def _fused(self, layer: LayerShape, normed: Node) -> tuple[Node, Node, Node]:
        tokens = self.size.n_tokens
        both = self._op(layer.q + layer.k + layer.v, normed)
        query = self._rope(self._view(both, tokens * layer.q), layer, layer.q)
        value = self._rotated(self._view(both, tokens * layer.v), self._rotate_v, layer, layer.v)
        return query, self._rope(self._view(both, tokens * layer.k), layer, layer.k), value

    def _rope(self, source: Node, layer: LayerShape, width: int) -> Node:
        """Rotary positions of queries or keys (a new tensor: its source is a view), then the cache's rotation."""
        placed = source if self.shape.position_embedding else self._op(width, source, self._positions)
        return self._rotated(placed, self._rotate_k, layer, width)

    def _mix(self, layer: LayerShape, query: Node) -> Node:
        """The values weighted by attention, [n_tokens, q]."""
        mask = self._masks[layer.windowed]
        if self.size.flash_attention:
            return self._view(self._op(layer.q, query, mask))
        cells = self.size.n_kv_window if layer.windowed else self.size.n_kv
        scores = self._op(cells * layer.heads, query)
        weights = self._in_place(scores, mask)
        mixed = self._op(layer.q, weights)
        return self._op(layer.q, self._view(mixed))

    def _feed_forward(self, layer: LayerShape, normed: Node, rows: int) -> Node:
        inner = layer.feed_forward
        if layer.gate:
            gate = self._op(inner, normed, rows=rows)
            hidden = self._op(inner, gate, self._op(inner, normed, rows=rows), rows=rows)
        elif layer.double_up:
            hidden = self._op(inner, self._op(2 * inner, normed, rows=rows), rows=rows)
        else:
            hidden = self._in_place(self._op(inner, normed, rows=rows))
        return self._op(self.shape.width, hidden, rows=rows)

    def _experts(self, layer: LayerShape, normed: Node, rows: int) -> Node:
        used, inner = self.shape.experts_used, layer.feed_forward
        scores = self._in_place(self._op(self.shape.experts, normed, rows=rows))
        order = self._view(self._op(self.shape.experts, scores, rows=rows), used * rows)
        weights = self._op(used, self._view(scores), order, rows=rows)
        weights = self._in_place(weights, self._in_place(self._op(1, weights, rows=rows)))
        source = self._view(normed)
        gate = self._op(inner * used, source, order, rows=rows)
        hidden = self._op(inner * used, gate, self._op(inner * used, source, order, rows=rows), rows=rows)
        outputs = self._in_place(self._op(self.shape.width * used, hidden, order, rows=rows), weights)
        parts = [self._view(outputs, self.shape.width * rows) for _ in range(used)]
        total = self._op(self.shape.width, *parts[:2], rows=rows)
        for part in parts[2:]:
            total = self._in_place(total, part)
        return total


def _input(nbytes: int) -> Node:
    return Node(nbytes, is_input=True)
