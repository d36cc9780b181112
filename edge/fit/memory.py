"""Memory that a model needs before it is loaded: weights, KV cache, compute buffer, on GPU and CPU.

It repeats llama.cpp's own arithmetic (src/llama-model.cpp, llama-kv-cache.cpp, llama-context.cpp; the compute
buffer is replayed node by node in `fit_graph`). Which plan to choose is left to `fit`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from edgepack.edge.fit.allocator import buffer_bytes
from edgepack.edge.fit.graph import GraphBuilder, GraphSize
from edgepack.edge.llama.options import kv_name, kv_type
from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from edgepack.edge.fit.shape import LayerShape, ModelShape
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import TensorInfo

_CELL_PADDING = 256  # GGML_PAD of n_ctx, and of the sliding cache, in llama-context.cpp and llama-kv-cache-iswa.cpp
_EQUAL_LAYERS = 3  # of a run of equal layers are enough to know the compute buffer
_ROTATION = 64  # llama.cpp rotates a quantised K or V whose head is a multiple of this


@dataclass(frozen=True)
class MemoryRequest:
    """How a model is to be opened, as far as memory is concerned; defaults are those of `run`.

    Attributes:
        n_ctx: tokens of context.
        n_batch, n_ubatch: tokens handed over, and computed, at once.
        kv_type_k, kv_type_v: names of `KV_TYPES`.
        n_gpu_layers: counted from the output back, as llama.cpp does: 1 is the output alone.
        n_outputs: rows of logits a batch may ask for; 0 is every token.
        flash_attention: attention without the matrix of scores.
    """

    n_ctx: int
    n_batch: int = 512
    n_ubatch: int = 512
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    n_gpu_layers: int = 0
    n_outputs: int = 1
    flash_attention: bool = True

    @property
    def kv_type(self) -> str:
        """The cache's name: `q8_0`, or `q8_0/q4_0` where K and V are of two types."""
        return kv_name(self.kv_type_k, self.kv_type_v)

    @property
    def cells(self) -> int:
        """Cells of the KV cache."""
        return _padded(self.n_ctx)

    @property
    def tokens(self) -> int:
        """Tokens that are computed at once."""
        return min(self.n_ctx, self.n_batch, self.n_ubatch)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on one side, CPU or GPU.

    Attributes:
        weights: tensors.
        kv: the KV cache.
        compute: the compute buffer (and, on the CPU's side, the output buffer).
    """

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.compute


@dataclass(frozen=True)
class MemoryPlan:
    """What a request takes on each side."""

    cpu: MemoryUse
    gpu: MemoryUse


def plan_memory(shape: ModelShape, request: MemoryRequest, cpu_weights: int | None = None) -> MemoryPlan:
    """Memory of `shape` opened as `request` says.

    Args:
        shape: the model.
        request: how it is opened.
        cpu_weights: what its weights take where all of them are on the CPU (`mapped_weights`); the plain sum of
            the tensors otherwise.
    """
    first_on_gpu = max(len(shape.layers) + 1 - request.n_gpu_layers, 0)
    on_cpu, on_gpu = shape.layers[:first_on_gpu], shape.layers[first_on_gpu:]
    logits = max(request.n_outputs, 1) * shape.n_vocab * 4
    compute = compute_bytes(shape, request)
    if not request.n_gpu_layers:
        weights = shape.nbytes if cpu_weights is None else cpu_weights
        kv = sum(kv_layer_bytes(shape, layer, request) for layer in on_cpu)
        return MemoryPlan(MemoryUse(weights, kv, compute + logits), MemoryUse(0, 0, 0))
    cpu = MemoryUse(
        shape.input_bytes + sum(layer.nbytes for layer in on_cpu),
        sum(kv_layer_bytes(shape, layer, request) for layer in on_cpu),
        # Layers that stay on the CPU compute there; the inputs always do.
        (compute if on_cpu else input_bytes(shape, request)) + logits,
    )
    gpu = MemoryUse(
        shape.output_bytes + sum(layer.nbytes for layer in on_gpu),
        sum(kv_layer_bytes(shape, layer, request) for layer in on_gpu),
        compute,
    )
    return MemoryPlan(cpu, gpu)


def _padded(count: int) -> int:
    return -(-count // _CELL_PADDING) * _CELL_PADDING


def window_cells(shape: ModelShape, request: MemoryRequest) -> int:
    """Cells of the cache of layers that look back no further than the window."""
    return _padded(min(request.cells, shape.window + request.tokens))


def kv_layer_bytes(shape: ModelShape, layer: LayerShape, request: MemoryRequest) -> int:
    """KV cache of one layer, or its recurrent state."""
    cells = window_cells(shape, request) if layer.windowed else request.cells
    return (
        cells * (kv_type(request.kv_type_k).row_bytes(layer.k) + kv_type(request.kv_type_v).row_bytes(layer.v))
        + layer.state
    )


def compute_bytes(shape: ModelShape, request: MemoryRequest) -> int:
    """The compute buffer, as `ggml_backend_sched_reserve` sizes it for one backend."""
    if shape.simulated is not None:
        return shape.simulated.compute_bytes(replace(request, n_gpu_layers=0))
    return _compute_bytes(shape, _graph_size(shape, request))


def _compute_bytes(shape: ModelShape, size: GraphSize) -> int:
    return _replayed(replace(shape, layers=_few_layers(shape.layers)), size)


def _few_layers(layers: tuple[LayerShape, ...]) -> tuple[LayerShape, ...]:
    """The layers without the later ones of each run of equals.

    Memory is reused from one layer to the next, so the third of equal layers is placed as the second was. Tests hold
    this against llama.cpp's figures for whole models.
    """
    kept: list[LayerShape] = []
    for layer in (replace(layer, nbytes=0, active_bytes=0) for layer in layers):
        if kept[-_EQUAL_LAYERS:].count(layer) < _EQUAL_LAYERS:
            kept.append(layer)
    return tuple(kept)


@lru_cache(maxsize=4096)
def _replayed(shape: ModelShape, size: GraphSize) -> int:
    return buffer_bytes(GraphBuilder(shape, size).build())


def input_bytes(shape: ModelShape, request: MemoryRequest) -> int:
    """Inputs of the graph and the embedded tokens: what the CPU's side computes when every layer is on the GPU."""
    size = _graph_size(shape, request)
    masks = {layer.windowed: size.n_kv_window if layer.windowed else size.n_kv for layer in shape.layers}
    return size.n_tokens * (2 * shape.width * 4 + 32 + sum(masks.values()) * (2 if size.flash_attention else 4))


def _graph_size(shape: ModelShape, request: MemoryRequest) -> GraphSize:
    quantised_k = kv_type(request.kv_type_k).is_quantized and shape.head_k % _ROTATION == 0
    quantised_v = kv_type(request.kv_type_v).is_quantized and shape.head_v % _ROTATION == 0
    return GraphSize(
        n_tokens=request.tokens,
        n_outputs=min(request.tokens, request.n_outputs or request.n_batch),
        n_kv=request.cells,
        n_kv_window=window_cells(shape, request),
        flash_attention=request.flash_attention,
        rotated_k=_rotation_side(shape.head_k) if quantised_k else 0,
        rotated_v=_ROTATION if quantised_v else 0,
    )


def _rotation_side(head: int) -> int:
    """The largest power of two from 64 up that divides the head."""
    side = _ROTATION
    while head % (side * 2) == 0:
        side *= 2
    return side


def repacked_types(features: Collection[str]) -> frozenset[GGMLType]:
    """Weight types that llama.cpp copies into an interleaved layout on a CPU with these features.

    The choice of ggml_repack_get_optimal_repack_type() in ggml/src/ggml-cpu/repack.cpp.

    Args:
        features: upper-case names as `llama_print_system_info` spells them: AVX2, AVX512, NEON, MATMUL_INT8 …
            A build with AMX is opened so that it repacks nothing (`edge.llama.build.has_amx`).
    """
    kinds: set[GGMLType] = set()
    if "AMX_INT8" in features:
        return frozenset()
    if "AVX2" in features:
        kinds |= {GGMLType.Q4_0, GGMLType.Q4_K, GGMLType.IQ4_NL, GGMLType.MXFP4}
    if "AVX512" in features:
        kinds.add(GGMLType.Q2_K)
    if "NEON" in features and {"DOTPROD", "MATMUL_INT8"} & set(features):
        kinds |= {GGMLType.Q4_0, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0}
        kinds |= {GGMLType.IQ4_NL, GGMLType.MXFP4} if "DOTPROD" in features else set()
    return frozenset(kinds)


def mapped_weights(header: GGUFHeader, features: Collection[str]) -> int:
    """Bytes of llama.cpp's model buffers where every layer stays on the CPU: the mapped span plus repacked copies.

    A repacked tensor is a copy in memory; the file's mapping spans from the first to the last tensor that is used
    as it stands, whatever lies between them. The operating system may drop mapped pages, so this is an upper bound.
    """
    kinds = repacked_types(features)
    repacked = [tensor for tensor in header.tensors if _is_repacked(tensor, kinds)]
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    copies = sum(tensor.nbytes for tensor in repacked)
    plain = [tensor for tensor in header.tensors if tensor not in set(repacked)]
    if tied:  # the token embedding is read by rows as it stands, and multiplied with as a copy
        copies += sum(t.nbytes for t in plain if t.name == "token_embd.weight" and _suits(t, kinds))
    return _span(plain) + copies


def _is_repacked(tensor: TensorInfo, kinds: Collection[GGMLType]) -> bool:
    return tensor.name.endswith(".weight") and not tensor.name.startswith("token_embd") and _suits(tensor, kinds)


def _suits(tensor: TensorInfo, kinds: Collection[GGMLType]) -> bool:
    return tensor.type in kinds and len(tensor.shape) in (2, 3) and tensor.shape[-2] % 8 == 0


def _span(tensors: Iterable[TensorInfo]) -> int:
    placed = list(tensors)
    if not placed:
        return 0
    return max(t.offset + t.nbytes for t in placed) - min(t.offset for t in placed)
