"""Refuses a GGUF whose metadata llama.cpp would crash on, loop on or over-allocate for.

The container itself (counts, lengths, offsets) is checked by `gguf.reader`; whether llama.cpp knows the
architecture is left to llama.cpp.
"""

from __future__ import annotations

import re
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from edgepack.edge.llama.adapter_base import check_base
from edgepack.edge.llama.check_vocabulary import check_vocabulary
from edgepack.errors import GGUFError, UnsupportedModelError, UsageError
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.gguf.reader import GGUFHeader

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_EXPERTS = 512  # LLAMA_MAX_EXPERTS is not below this in any version that we run
# key below the architecture → (least, most) value; each is optional but where it stands it must be in range.
_RANGES: dict[str, tuple[int, int]] = {
    "block_count": (1, _MAX_LAYERS),
    "context_length": (1, 2**31 - 1),
    "embedding_length": (1, 2**20),
    "feed_forward_length": (0, 2**24),
    "attention.head_count": (0, 2**14),
    "attention.head_count_kv": (0, 2**14),
    "attention.key_length": (1, 2**16),
    "attention.value_length": (1, 2**16),
    "attention.sliding_window": (0, 2**31 - 1),
    "rope.dimension_count": (0, 2**16),
    "expert_count": (0, _MAX_EXPERTS),
    "expert_used_count": (0, _MAX_EXPERTS),
    "expert_group_count": (0, _MAX_EXPERTS),
    "expert_group_used_count": (0, _MAX_EXPERTS),
    "nextn_predict_layers": (0, 8),
    "vocab_size": (0, 2**24),
    "pooling_type": (0, 4),  # enum llama_pooling_type; llama.cpp aborts on others
    "full_attention_interval": (1, _MAX_LAYERS),  # llama.cpp divides by these
    "interleave_moe_layer_step": (1, _MAX_LAYERS),
    "ssm.conv_kernel": (1, 2**10),
    "ssm.inner_size": (1, 2**24),
    "ssm.state_size": (1, 2**16),
    "ssm.time_step_rank": (1, 2**20),
    "ssm.group_count": (0, 2**16),
    "wkv.head_size": (1, 2**16),
}
# Per-layer lists are allowed for these (as many values as layers), a single number for all.
_PER_LAYER = {"feed_forward_length", "attention.head_count", "attention.head_count_kv"}
_ROPE_SCALING = ("none", "linear", "yarn", "longrope")  # LLAMA_ROPE_SCALING_TYPES; llama.cpp aborts on others
_REQUIRED = ("block_count", "context_length", "embedding_length")
# key → least value; ggml asserts that an epsilon is not negative when it computes a norm.
_FINITE = {
    "attention.layer_norm_epsilon": 0.0,
    "attention.layer_norm_rms_epsilon": 0.0,
    "attention.group_norm_epsilon": 0.0,
    "rope.freq_base": 0.0,
    "rope.scaling.factor": 0.0,
    "attention.scale": -inf,
    "attention.max_alibi_bias": 0.0,
    "attention.clamp_kqv": 0.0,
    "logit_scale": -inf,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
}


def read_runnable(path: Path) -> GGUFHeader:
    """The header of a GGUF that is safe to hand to llama.cpp.

    Raises:
        UsageError: the file does not exist.
        GGUFError: it is not a model, truncated, hostile or inconsistent.
    """
    if not path.is_file():
        raise UsageError(f"'{path}': no such file")
    header = read_header(path)
    check_runnable(header)
    return header


def generates(header: GGUFHeader) -> bool:
    """Whether a model says what comes next; encoders, embedders and cross-encoders do not."""
    name = header.get(keys.ARCHITECTURE)
    return header.get(f"{name}.pooling_type") is None and header.get(f"{name}.attention.causal") is not False


def check_generates(header: GGUFHeader) -> None:
    """Check that a model says what comes next: llama.cpp would abort on an encoder.

    Raises:
        UnsupportedModelError: its file says that tokens are pooled or scored, or that attention looks ahead.
    """
    if not generates(header):
        name = header.get(keys.ARCHITECTURE)
        raise UnsupportedModelError(
            f"{header.path}: {name} gives embeddings or scores (edgepack embed): it does not say what comes next"
        )


def check_adapter(path: Path, model: GGUFHeader | None = None, base: Path | None = None) -> None:
    """Check that `path` is a GGUF LoRA adapter, made for `model`, and one that llama.cpp survives on it.

    Args:
        path: of the adapter.
        model: the model's header; None to look at the adapter alone.
        base: the model's plain GGUF, whose digest an adapter may state; None where there is none.

    Raises:
        UsageError: it does not exist, or is something else.
        AdapterError: it was made for another model, or for another file of it.
        UnsupportedModelError: it changes an embedding that is also the output matrix: llama.cpp would abort.
        GGUFError: it is truncated, hostile or inconsistent.
    """
    if not path.is_file():
        raise UsageError(f"adapter '{path}': no such file")
    header = read_header(path)
    if header.get(keys.TYPE) != "adapter" or header.get(keys.ADAPTER_TYPE) != "lora":
        raise UsageError(f"adapter '{path}': expected a LoRA adapter, got general.type {header.get(keys.TYPE)!r}")
    if model is None:
        return
    check_base(header, model, base)
    if any(tensor.name == "output.weight" for tensor in model.tensors):
        return
    if any(tensor.name.startswith("token_embd.") for tensor in header.tensors):
        raise UnsupportedModelError(f"adapter '{path}': it changes an embedding that is also the output matrix")


def check_runnable(header: GGUFHeader) -> None:
    """Check the metadata of a model; raises GGUFError with the key and the value."""
    kind = header.get(keys.TYPE, "model")
    if kind != "model":
        raise GGUFError(f"{header.path}: general.type: expected 'model', got {kind!r}")
    architecture = header.get(keys.ARCHITECTURE)
    if not isinstance(architecture, str) or not re.fullmatch(r"[a-z0-9._-]{1,64}", architecture):
        raise GGUFError(f"{header.path}: general.architecture: expected a name, got {architecture!r:.80}")
    for name in _REQUIRED:
        if header.get(f"{architecture}.{name}") is None:
            raise GGUFError(f"{header.path}: metadata key '{architecture}.{name}' is missing")
    for name, (least, most) in _RANGES.items():
        _check_range(header, f"{architecture}.{name}", least, most, per_layer=name in _PER_LAYER)
    for name, bound in _FINITE.items():
        value = header.get(f"{architecture}.{name}")
        if value is not None and not (isinstance(value, (int, float)) and isfinite(value) and value >= bound):
            rule = "a finite number" if bound == -inf else f"a finite number of at least {bound}"
            raise GGUFError(f"{header.path}: {architecture}.{name}: expected {rule}, got {value!r:.80}")
    _check_heads(header, architecture)
    _check_experts(header, architecture)
    _check_rope(header, architecture)
    _check_layers(header, int(header.get(f"{architecture}.block_count")))
    check_vocabulary(header)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_range(header: GGUFHeader, key: str, least: int, most: int, *, per_layer: bool) -> None:
    value = header.get(key)
    if value is None:
        return
    items = value if isinstance(value, list) and per_layer else [value]
    for item in items:
        if not _is_count(item) or not least <= item <= most:
            raise GGUFError(f"{header.path}: {key}: expected {least} to {most}, got {item!r:.80}")


def _check_heads(header: GGUFHeader, architecture: str) -> None:
    """Divisions that llama.cpp makes without looking: width by heads, heads by KV heads."""
    heads = header.get(f"{architecture}.attention.head_count")
    kv_heads = header.get(f"{architecture}.attention.head_count_kv", heads)
    layers = header.get(f"{architecture}.block_count")
    for key, value in (("head_count", heads), ("head_count_kv", kv_heads)):
        if isinstance(value, list) and len(value) < layers:
            raise GGUFError(f"{header.path}: attention.{key}: expected {layers} values, got {len(value)}")
    if _is_count(heads) and _is_count(kv_heads) and kv_heads and heads % kv_heads:
        raise GGUFError(f"{header.path}: attention.head_count {heads} is not a multiple of head_count_kv {kv_heads}")


def _check_experts(header: GGUFHeader, architecture: str) -> None:
    """What llama.cpp asserts of experts and their groups (load_hparams in src/llama-model.cpp): it would abort."""
    experts, used, groups, groups_used = (
        header.get(f"{architecture}.{name}", 0)
        for name in ("expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count")
    )
    if used > experts or (experts and not used):
        raise GGUFError(f"{header.path}: expert_used_count: expected 1 to {experts}, got {used}")
    split = groups <= 1 or (experts % groups == 0 and 0 < groups_used < groups)
    if groups and (groups >= experts or not split):
        raise GGUFError(f"{header.path}: expert_group_count: {groups} groups do not divide {experts} experts")


def _check_rope(header: GGUFHeader, architecture: str) -> None:
    scaling = header.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in _ROPE_SCALING:
        raise GGUFError(f"{header.path}: rope.scaling.type: expected one of {_ROPE_SCALING}, got {scaling!r:.80}")


def _check_layers(header: GGUFHeader, layers: int) -> None:
    """A layer count far from the tensors that are there is a lie, whichever of the two is wrong."""
    present = {int(match[1]) for tensor in header.tensors if (match := re.match(r"blk\.(\d{1,9})\.", tensor.name))}
    if len(present) < layers:
        raise GGUFError(
            f"{header.path}: block_count says {layers} layers, but only {len(present)} have tensors in the file"
        )
