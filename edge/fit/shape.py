"""What a GGUF's header says of the model's size: widths, heads, windows and the bytes of each layer.

Nothing is computed from it here; memory is `fit_memory`'s, speed `fit_speed`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import GGUFError, UnsupportedModelError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import TensorInfo

# Every n-th layer attends to everything, the others only within the window: the default of
# load_swa_pattern() in llama.cpp's src/models/NAME.cpp, where no pattern stands in the file.
_WINDOW_PATTERN = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt-oss": 2, "exaone4": 4, "olmo2": 4, "plamo3": 8}
# Architectures whose state or graph is of another kind than one attention and one feed-forward a layer.
_UNLIKE = re.compile(r"mamba|rwkv|jamba|t5|bert|falcon-h1|granite-hybrid|nemotron-h|lfm2|plamo2|deepseek|kimi|"
                     r"minicpm3|gemma3n|gemma4|qwen3next|qwen35|plm|glm|wavtokenizer|minimax|dsv|llama4")  # fmt: skip


@dataclass(frozen=True)
class LayerShape:
    """One transformer layer.

    Attributes:
        nbytes: of its tensors.
        active_bytes: of the tensors that one token reads: all, but of experts only those used.
        q, k, v: widths of the queries, keys and values, all heads together.
        heads: query heads.
        feed_forward: inner width.
        windowed: whether attention ends at the sliding window.
        fused_qkv: one matrix makes queries, keys and values.
        gate: the feed-forward has a gate matrix of its own; `double_up` has it inside `ffn_up`.
        qk_norm, post_norm: extra norms.
    """

    nbytes: int
    active_bytes: int
    q: int
    k: int
    v: int
    heads: int
    feed_forward: int
    windowed: bool
    fused_qkv: bool
    gate: bool
    double_up: bool
    post_norm: bool


@dataclass(frozen=True)
class ModelShape:
    """A whole model.

    Attributes:
        layers: from the first to the last.
        width: of the residual stream.
        n_vocab: rows of the output matrix.
        n_ctx_train: the context of training.
        window: of sliding attention, 0 for none.
        head_k, head_v: width of one head.
        experts, experts_used: 0 for a dense model.
        input_bytes: of the token embedding (and positions): read by rows, always in the CPU's memory.
        output_bytes: of the output norm and matrix.
        tied: the token embedding is also the output matrix: the GPU gets a copy of its own.
        layer_norm: LayerNorm instead of RMSNorm.
        position_embedding: learned positions are added to the input.
    """

    architecture: str
    layers: tuple[LayerShape, ...]
    width: int
    n_vocab: int
    n_ctx_train: int
    window: int
    head_k: int
    head_v: int
    experts: int
    experts_used: int
    input_bytes: int
    output_bytes: int
    tied: bool
    layer_norm: bool
    position_embedding: bool
    scaled_logits: bool

    @property
    def nbytes(self) -> int:
        """All tensors, each once."""
        output = 0 if self.tied else self.output_bytes
        return self.input_bytes + output + sum(layer.nbytes for layer in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Weights that the evaluation of one token reads: of the token embedding only the output's use of it."""
        return self.output_bytes + sum(layer.active_bytes for layer in self.layers)


class _Keys:
    """The architecture's keys of a header, as checked integers."""

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header
        self.architecture = str(header.get(keys.ARCHITECTURE))

    def raw(self, name: str) -> Any:
        return self.header.get(f"{self.architecture}.{name}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.raw(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise GGUFError(f"{self.header.path}: {self.architecture}.{name}: expected an integer, got {value!r:.80}")
        return value

    def per_layer(self, name: str, layer: int, default: int | None = None) -> int:
        value = self.raw(name)
        if isinstance(value, list):
            return int(value[layer])
        return self.integer(name, default)


def read_shape(header: GGUFHeader) -> ModelShape:
    """The shape of the model in a checked header (`runtime_check.check_runnable`).

    Raises:
        GGUFError: a needed key is missing.
        UnsupportedModelError: an architecture whose memory is not understood (recurrent, encoder, MLA …).
    """
    keys = _Keys(header)
    if _UNLIKE.search(keys.architecture):
        raise UnsupportedModelError(f"fit: the memory of architecture '{keys.architecture}' cannot be predicted yet")
    groups = _group(header.tensors)
    heads = keys.per_layer("attention.head_count", 0)
    if not heads:
        raise UnsupportedModelError("fit: a model whose first layer has no attention cannot be predicted yet")
    head_k = keys.integer("attention.key_length", keys.integer("embedding_length") // heads)
    count = keys.integer("block_count")
    window = 0 if keys.architecture == "phi3" else keys.integer("attention.sliding_window", 0)
    if keys.architecture not in _WINDOW_PATTERN:
        window = 0  # llama.cpp reads the window of these only
    tied = "output.weight" not in groups[-1]
    embedding = groups[-1].get("token_embd.weight")
    if embedding is None:
        raise GGUFError(f"{header.path}: no tensor 'token_embd.weight'")
    inputs = [tensor for name, tensor in groups[-1].items() if name.startswith(("token_embd", "position_embd"))]
    outputs = [tensor for name, tensor in groups[-1].items() if name.startswith("output")]
    return ModelShape(
        architecture=keys.architecture,
        layers=tuple(_layer(keys, layer, groups.get(layer, {}), window, head_k) for layer in range(count)),
        width=keys.integer("embedding_length"),
        n_vocab=embedding.rows,
        n_ctx_train=keys.integer("context_length"),
        window=window,
        head_k=head_k,
        head_v=keys.integer("attention.value_length", head_k),
        experts=keys.integer("expert_count", 0),
        experts_used=keys.integer("expert_used_count", 0),
        input_bytes=sum(tensor.nbytes for tensor in inputs),
        output_bytes=sum(tensor.nbytes for tensor in outputs) + (embedding.nbytes if tied else 0),
        tied=tied,
        layer_norm=keys.raw("attention.layer_norm_rms_epsilon") is None,
        position_embedding="position_embd.weight" in groups[-1],
        scaled_logits=keys.raw("final_logit_softcapping") is not None,
    )


def _group(tensors: tuple[TensorInfo, ...]) -> dict[int, dict[str, TensorInfo]]:
    """Layer → name without `blk.N.` → tensor; layer -1 holds what belongs to no layer."""
    groups: dict[int, dict[str, TensorInfo]] = {-1: {}}
    for tensor in tensors:
        match = re.match(r"blk\.(\d+)\.(.+)", tensor.name)
        layer, name = (int(match[1]), match[2]) if match else (-1, tensor.name)
        groups.setdefault(layer, {})[name] = tensor
    return groups


def _layer(keys: _Keys, layer: int, tensors: dict[str, TensorInfo], window: int, head_k: int) -> LayerShape:
    heads = keys.per_layer("attention.head_count", layer)
    kv_heads = keys.per_layer("attention.head_count_kv", layer, heads)
    experts, used = keys.integer("expert_count", 0), keys.integer("expert_used_count", 0)
    total = sum(tensor.nbytes for tensor in tensors.values())
    expert_bytes = sum(tensor.nbytes for name, tensor in tensors.items() if "_exps." in name)
    idle = expert_bytes * (experts - used) // experts if experts else 0
    down = tensors.get("ffn_down.weight") or tensors.get("ffn_down_exps.weight")
    up = tensors.get("ffn_up.weight")
    inner = down.shape[-1] if down else keys.per_layer("feed_forward_length", layer, 0)
    return LayerShape(
        nbytes=total,
        active_bytes=total - idle,
        q=heads * head_k,
        k=kv_heads * head_k,
        v=kv_heads * keys.integer("attention.value_length", head_k),
        heads=heads,
        feed_forward=inner,
        windowed=bool(window) and _is_windowed(keys, layer),
        fused_qkv="attn_qkv.weight" in tensors,
        gate="ffn_gate.weight" in tensors or bool(experts),
        double_up=up is not None and up.shape[0] == 2 * inner,
        post_norm="post_attention_norm.weight" in tensors,
    )


def _is_windowed(keys: _Keys, layer: int) -> bool:
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return bool(pattern[layer])
    period = pattern if isinstance(pattern, int) else _WINDOW_PATTERN[keys.architecture]
    return period == 0 or layer % period < period - 1
