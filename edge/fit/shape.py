"""What a GGUF's header says of the model's size: widths, heads, windows and the bytes of each layer.

Nothing is computed from it here; memory is `fit_memory`'s, speed `fit_speed`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.edge.fit.simulated import SimulatedModel
from edgepack.edge.llama.engines import COMPRESS_EXTRA, installed
from edgepack.errors import GGUFError, UnsupportedModelError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import TensorInfo

# Every n-th layer attends to everything, the others only within the window: the default of
# load_swa_pattern() in llama.cpp's src/models/NAME.cpp, where no pattern stands in the file.
_WINDOW_PATTERN = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt-oss": 2, "exaone4": 4, "olmo2": 4, "plamo3": 8,
                   "gemma3n": 5, "gemma4": 6, "llama4": 4}  # fmt: skip
_CHUNK_OF_LLAMA4 = 8192  # stands in its graph, not in the file
# Architectures whose graph is not replayed node by node: llama.cpp is asked for their compute buffer.
_ASKED = re.compile(r"mamba2?|jamba|falcon-h1|granitemoe|granitehybrid|nemotron_h(_moe)?|lfm2(moe)?|gemma3n|gemma4|"
                    r"gpt-oss|qwen3next|qwen35(moe)?|glm4(moe)?|mistral3|qwen[23]vl(moe)?|deepseek2|minicpm3|llama4|olmoe|"
                    r"exaone4|hunyuan-(dense|moe)|ernie4_5(-moe)?|cohere2|seed_oss|phi2|stablelm|apertus|arcee|nemotron|"
                    r"bitnet|falcon|baichuan|gemma-embedding|(nomic-|modern-)?bert|nomic-bert-moe|"
                    r"jina-bert-v[23]|rwkv7|qwen2moe")  # fmt: skip
# Encoders, which keep nothing of a text.
_WITHOUT_CACHE = re.compile(r"gemma-embedding|.*bert.*")
# Architectures whose caches are of another kind than keys, values and states of layers.
_UNLIKE = re.compile(r"rwkv6|arwkv|t5|plamo2|deepseek(?!2$)|kimi|plm|chatglm|glm-|wavtokenizer|minimax|dsv")


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
        state: bytes of the recurrent state that each sequence has, 0 for none.
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
    state: int = 0


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
        simulated: whom to ask for the compute buffer, None where the graph is replayed.
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
    simulated: SimulatedModel | None = None

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
        UnsupportedModelError: an architecture whose memory is not understood (RWKV 6, encoder and decoder …).
    """
    keys = _Keys(header)
    if _UNLIKE.search(keys.architecture):
        raise UnsupportedModelError(f"fit: the memory of architecture '{keys.architecture}' cannot be predicted yet")
    groups = _group(header.tensors)
    count = keys.integer("block_count") - keys.integer("nextn_predict_layers", 0)  # layers that draft are not loaded
    asked = _ASKED.fullmatch(keys.architecture) is not None
    heads = max((keys.per_layer("attention.head_count", layer) for layer in range(count)), default=0)
    if not heads and not asked:
        raise UnsupportedModelError("fit: a model whose first layer has no attention cannot be predicted yet")
    head_k = keys.integer("attention.key_length", keys.integer("embedding_length") // heads if heads else 0)
    usual = _CHUNK_OF_LLAMA4 if keys.architecture == "llama4" else 0
    window = 0 if keys.architecture == "phi3" else keys.integer("attention.sliding_window", usual)
    if keys.architecture not in _WINDOW_PATTERN:
        window = 0  # llama.cpp reads the window of these only
    tied = "output.weight" not in groups[-1]
    embedding = groups[-1].get("token_embd.weight")
    if embedding is None:
        raise GGUFError(f"{header.path}: no tensor 'token_embd.weight'")
    inputs = [tensor for name, tensor in groups[-1].items() if name.startswith(_INPUTS)]
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
        simulated=_asked_model(header, embedding.rows) if asked else None,
    )


def _asked_model(header: GGUFHeader, n_vocab: int) -> SimulatedModel:
    if not installed("llama-cpp-python"):
        raise UnsupportedModelError(
            f"{header.path}: the memory of this kind of model is known to llama-cpp-python alone: {COMPRESS_EXTRA}"
        )
    return SimulatedModel(header, n_vocab)


# llama.cpp keeps these on the CPU: they are read by rows.
_INPUTS = ("token_embd", "position_embd", "per_layer_token_embd")


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
    windowed = bool(window) and _is_windowed(keys, layer)
    if windowed:
        head_k = keys.integer("attention.key_length_swa", head_k)
    head_v = keys.integer("attention.value_length_swa" if windowed else "attention.value_length", head_k)
    if not _has_cache(keys, layer, tensors):
        kv_heads = 0
    latent = keys.raw("attention.key_length_mla") is not None  # the cache holds it once, as the key
    return LayerShape(
        nbytes=total,
        active_bytes=total - idle,
        q=heads * head_k,
        k=kv_heads * head_k,
        v=0 if latent else kv_heads * head_v,
        heads=heads,
        feed_forward=inner,
        windowed=windowed,
        fused_qkv="attn_qkv.weight" in tensors,
        gate="ffn_gate.weight" in tensors or bool(experts),
        double_up=up is not None and up.shape[0] == 2 * inner,
        post_norm="post_attention_norm.weight" in tensors,
        state=_state_bytes(keys, tensors),
    )


def _has_cache(keys: _Keys, layer: int, tensors: dict[str, TensorInfo]) -> bool:
    """Whether a layer keeps keys and values: recurrent ones and those that share an earlier one's do not."""
    if _WITHOUT_CACHE.fullmatch(keys.architecture):
        return False
    if keys.architecture == "gemma3n":
        return layer < _GEMMA3N_CACHES
    shared = keys.integer("attention.shared_kv_layers", 0)
    if shared:
        return layer < keys.integer("block_count") - shared
    return "ssm_conv1d.weight" not in tensors or "attn_k.weight" in tensors


_GEMMA3N_CACHES = 20  # n_layer_kv_from_start in gemma3n.cpp


def _state_bytes(keys: _Keys, tensors: dict[str, TensorInfo]) -> int:
    """What a recurrent layer keeps of a sequence (`n_embd_r` and `n_embd_s` of llama-hparams.cpp), in float32."""
    if "shortconv.conv.weight" in tensors:
        return (keys.integer("shortconv.l_cache") - 1) * keys.integer("embedding_length") * 4
    if "time_mix_lerp_fused.weight" in tensors:  # the last token of both parts, and a matrix of every head
        return (2 + keys.integer("wkv.head_size")) * keys.integer("embedding_length") * 4
    if "ssm_conv1d.weight" not in tensors:
        return 0
    inner, state = keys.integer("ssm.inner_size"), keys.integer("ssm.state_size")
    channels = inner + 2 * keys.integer("ssm.group_count", 0) * state
    return ((keys.integer("ssm.conv_kernel") - 1) * channels + state * inner) * 4


def _is_windowed(keys: _Keys, layer: int) -> bool:
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return bool(pattern[layer])
    period = pattern if isinstance(pattern, int) else _WINDOW_PATTERN[keys.architecture]
    return period == 0 or layer % period < period - 1
