"""Grouped attention with rope rewritten as attention through a latent: DeepSeek's, whose cache llama.cpp holds narrow.

After TransMLA (arXiv 2502.07864): keys of all heads share one key with rope (`shared_rope`), what is left of them and
the values come from one latent of few dimensions, of principal components. The latent's norm, which that paper's own
model code leaves out and llama.cpp's graph has, is met by a latent whose length hardly changes from token to token.
Training is left to `training`, files to the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

from edgepack.errors import CalibrationError, UnsupportedModelError, UsageError
from edgepack.quant.attention.families import layout_of
from edgepack.quant.attention.shared_rope import SharedRope, causal_distances, keep_rope, share_rope

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLASSES = ("LlamaForCausalLM", "MistralForCausalLM")
_RIDGE = 1e-6  # of the mean eigenvalue
_SHARES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # tried for the constant's part of the latent's square


@dataclass(frozen=True)
class LatentSettings:
    """The shape of the attention.

    Attributes:
        rank: elements of the latent, one of them for a constant: 2 to the model's width. At the width the latent is
            the layer's input itself, and exact.
        fold: neighbouring frequencies of rope that become one: the shared key has head / fold elements.
        rope: "shared" for one key with rope, as llama.cpp holds it; "whole" keeps every head's rope, which is exact and
            which transformers alone runs.
        balance: weight of keys against values in the latent; 1 gives both the same part of the squared error.
    """

    rank: int
    fold: int = 1
    rope: str = "shared"
    balance: float = 1.0

    def __post_init__(self) -> None:
        if self.rope not in ("shared", "whole"):
            raise UsageError(f"rope: expected shared or whole, got '{self.rope}'")
        if not self.balance > 0:
            raise UsageError(f"balance: expected a number above 0, got {self.balance}")


def latent_bytes_per_token(config: Any, element: int = 2) -> int:
    """Bytes that llama.cpp's cache holds for a token: a latent and a shared key a layer, values are the latent."""
    return int(config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * element)


def to_latent_attention(model: Any, tokens: torch.Tensor, settings: LatentSettings) -> Any:
    """A DeepSeek V3 of dense layers that says nearly what `model` says.

    Args:
        model: a transformers Llama without biases; it is not changed.
        tokens: [sequences, length] to calibrate on.
        settings: the shape of the attention.

    Returns:
        A `DeepseekV3ForCausalLM` in float32 on the model's device.

    Raises:
        UnsupportedModelError: another class, biases, a window, rope that is scaled.
        UsageError: a rank out of range, or frequencies that do not fold.
        CalibrationError: fewer tokens than the rank.
    """
    config = latent_config(model, settings)
    inputs = _layer_inputs(model, tokens)
    if len(inputs[0]) < settings.rank:
        raise CalibrationError(f"latent attention: expected at least {settings.rank} tokens, got {len(inputs[0])}")
    made = transformers.DeepseekV3ForCausalLM(config).float().eval()
    state = {name: tensor.float() for name, tensor in model.state_dict().items() if ".self_attn." not in name}
    distances = causal_distances(tokens.shape[1])
    for index, seen in enumerate(inputs):
        prefix = f"model.layers.{index}."
        state[f"{prefix}input_layernorm.weight"] = torch.ones(config.hidden_size)
        weights = _Attention.of(model, index)
        state |= {f"{prefix}self_attn.{k}": v.float() for k, v in _layer(weights, seen, distances, settings, config)}
    made.load_state_dict(state)
    return made.to(model.device)


def latent_config(model: Any, settings: LatentSettings) -> Any:
    """The configuration of the rewritten model.

    Raises:
        UnsupportedModelError: another class, biases, a window, rope that is scaled.
        UsageError: a rank out of range, or frequencies that do not fold.
    """
    layout, config = layout_of(model), model.config
    name, kind = type(model).__name__, config.rope_parameters["rope_type"]
    if name not in _CLASSES or getattr(config, "sliding_window", None):
        raise UnsupportedModelError(f"{name}: latent attention is made of {' or '.join(_CLASSES)} without a window")
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False) or kind != "default":
        raise UnsupportedModelError(f"{name}: latent attention has no biases and plain rope, got rope type '{kind}'")
    if not 2 <= settings.rank <= config.hidden_size:
        raise UsageError(f"rank: expected 2 to {config.hidden_size}, the model's width, got {settings.rank}")
    if settings.fold < 1 or layout.head // 2 % settings.fold:
        raise UsageError(f"fold: expected a divisor of the {layout.head // 2} frequencies of rope, got {settings.fold}")
    turned = layout.width if settings.rope == "whole" else layout.head // settings.fold
    kept = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
        "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id",
        "pad_token_id", "initializer_range",
    )  # fmt: skip
    return transformers.DeepseekV3Config(
        **{key: getattr(config, key) for key in kept},
        num_key_value_heads=layout.heads, q_lora_rank=None, kv_lora_rank=settings.rank, qk_rope_head_dim=turned,
        qk_nope_head_dim=layout.head, v_head_dim=layout.head, first_k_dense_replace=config.num_hidden_layers,
        n_routed_experts=2, num_experts_per_tok=1, n_shared_experts=1, n_group=1, topk_group=1, num_mtp_layers=0,
        moe_intermediate_size=config.intermediate_size, rope_interleave=True,
        rope_parameters=_rope(config.rope_parameters["rope_theta"], layout.head, turned),
    )  # fmt: skip


def _rope(theta: float, head: int, turned: int) -> dict[str, Any]:
    """Plain, or every head's frequencies one after the other, which "longrope" spells as factors on plain ones."""
    if turned <= head:
        return {"rope_type": "default", "rope_theta": theta}
    wanted = theta ** (torch.arange(0, head, 2).double() / head).repeat(turned // head)
    factors = (wanted / theta ** (torch.arange(0, turned, 2).double() / turned)).tolist()
    return {
        "rope_type": "longrope", "rope_theta": theta, "long_factor": factors, "short_factor": factors, "factor": 1.0,
        "attention_factor": 1.0,
    }  # fmt: skip


@dataclass(frozen=True)
class _Attention:
    """Weights of a layer [out, width], the norm in front of them folded in, float64."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    output: torch.Tensor
    heads: int
    kv_heads: int
    head: int
    angles: torch.Tensor

    @classmethod
    def of(cls, model: Any, index: int) -> _Attention:
        layout, layer = layout_of(model), model.model.layers[index]
        norm, attention = layer.input_layernorm.weight.detach().double().cpu(), layer.self_attn
        q, k, v = (getattr(attention, f"{each}_proj").weight.detach().double().cpu() * norm for each in ("q", "k", "v"))
        angles = model.model.rotary_emb.inv_freq.double().cpu()
        output = attention.o_proj.weight.detach().double().cpu()
        return cls(q, k, v, output, layout.heads, layout.kv_heads, layout.head, angles)

    @property
    def shared(self) -> int:
        """Query heads that read one head of keys."""
        return self.heads // self.kv_heads


def _layer_inputs(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What each layer's attention reads, its norm's weights left out: [tokens, width] float32 a layer."""
    if tokens.ndim != 2 or not tokens.numel():
        raise CalibrationError(f"latent attention: expected tokens [sequences, length], got {list(tokens.shape)}")
    found: list[list[torch.Tensor]] = [[] for _ in model.model.layers]

    def note(index: int) -> Any:
        def hook(module: Any, _arguments: Any, output: torch.Tensor) -> None:
            found[index].append((output[0].float() / module.weight.float()).cpu())

        return hook

    hooks = [layer.input_layernorm.register_forward_hook(note(index)) for index, layer in enumerate(model.model.layers)]
    try:
        with torch.inference_mode():
            for sequence in tokens:
                model(input_ids=sequence[None].to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(each) for each in found]


def _layer(
    weights: _Attention, seen: torch.Tensor, distances: torch.Tensor, settings: LatentSettings, config: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    """The attention's tensors under DeepSeek's names."""
    inputs = seen.double()
    moments = inputs.T @ inputs / len(inputs)
    asked = (weights.queries @ moments @ weights.queries.T).reshape(weights.heads, weights.head, weights.heads, -1)
    asked = torch.stack([asked[each, :, each] for each in range(weights.heads)])
    asked = asked.reshape(weights.kv_heads, weights.shared, weights.head, weights.head).mean(1)
    if settings.rope == "whole":
        rope = keep_rope(weights.kv_heads, weights.head)
    else:
        rope = share_rope(weights.keys @ moments @ weights.keys.T, asked, weights.angles, distances, settings.fold)
    wanted = torch.cat([rope.rest @ weights.keys, weights.values])
    down, up = _latent(wanted, inputs, _metric(weights, asked, wanted @ moments @ wanted.T, settings.balance), settings)
    growth = ((config.qk_nope_head_dim + config.qk_rope_head_dim) / weights.head) ** 0.5  # of the scores' scale
    yield "q_proj.weight", _queries(weights, rope) * growth
    yield "kv_a_proj_with_mqa.weight", torch.cat([down, rope.down @ weights.keys])
    yield "kv_a_layernorm.weight", torch.ones(settings.rank)
    yield "kv_b_proj.weight", _per_query_head(up, weights)
    yield "o_proj.weight", weights.output


def _queries(weights: _Attention, rope: SharedRope) -> torch.Tensor:
    """[heads · (without rope + with), width]: a head as it is, and its part that meets the shared key."""
    heads = weights.queries.reshape(weights.heads, weights.head, -1)
    turned = torch.stack([rope.queries[index // weights.shared] @ head for index, head in enumerate(heads)])
    return torch.cat([heads, turned], dim=1).flatten(0, 1)


def _per_query_head(up: torch.Tensor, weights: _Attention) -> torch.Tensor:
    """[keys, then values of every head of keys; rank] → [heads · (keys + values), rank]."""
    keys, values = up.reshape(2, weights.kv_heads, weights.head, -1)
    both = torch.cat([keys, values], dim=1)
    return both.repeat_interleave(weights.shared, dim=0).flatten(0, 1)


def _metric(weights: _Attention, asked: torch.Tensor, second: torch.Tensor, balance: float) -> torch.Tensor:
    """What an error of keys does to scores and of values to the output, each as a share of all that they do."""
    output = weights.output.reshape(-1, weights.heads, weights.head)
    products = torch.einsum("ohi,ohj->hij", output, output)
    products = products.reshape(weights.kv_heads, weights.shared, weights.head, weights.head).sum(1)
    half = weights.kv_heads * weights.head
    keys, values = torch.block_diag(*asked), torch.block_diag(*products)
    parts = []
    for metric, moments in ((keys, second[:half, :half]), (values, second[half:, half:])):
        total = (metric * moments).sum()
        parts.append(metric / total if total > 0 else torch.zeros_like(metric))
    return torch.block_diag(balance * parts[0], parts[1])


def _latent(
    wanted: torch.Tensor, inputs: torch.Tensor, metric: torch.Tensor, settings: LatentSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps down [rank, width] and up [wanted, rank], the norm between them.

    Components of what is wanted, about its mean, all of one size: so many of them that the square of their sum hardly
    changes. The last is the inputs' best approach to a constant; it carries the mean, and its part of the square is
    what makes the length change the least. The way up is a regression on the normalised latent, so that it is right
    for the lengths that there are.
    """
    if settings.rank == inputs.shape[1]:
        return torch.eye(settings.rank, dtype=torch.float64), wanted
    mean = inputs.mean(0)
    moments = inputs.T @ inputs / len(inputs)
    ridge = _RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    constant = torch.linalg.solve(moments + ridge, mean)
    components = _components(wanted, moments - mean[:, None] * mean[None], metric, settings.rank - 1)
    # without the constant's direction components have no mean: what x says beside its approach to a constant
    components = components - (components @ mean)[:, None] * constant[None] / (constant @ mean)
    latent, steady = inputs @ components.T, inputs @ constant
    sizes = latent.square().mean(0).sqrt().clamp_min(1e-12)
    components, latent = components / sizes[:, None], latent / sizes
    best, down = float("inf"), components
    for share in _SHARES:
        part = (share * (settings.rank - 1)) ** 0.5
        lengths = (latent.square().sum(1) + (part * steady).square()).sqrt()
        spread = float(lengths.std() / lengths.mean())
        if spread < best:
            best, down = spread, torch.cat([components, part * constant[None]])
    made = inputs @ down.T
    made = made / made.square().mean(1, keepdim=True).sqrt()
    products = made.T @ made / len(made)
    ridge = _RIDGE * products.diagonal().mean() * torch.eye(settings.rank, dtype=torch.float64)
    up = torch.linalg.solve(products + ridge, made.T @ (inputs @ wanted.T) / len(made)).T
    return down, up


def _components(wanted: torch.Tensor, covariance: torch.Tensor, metric: torch.Tensor, count: int) -> torch.Tensor:
    """Rows [count, width] whose span gives back `wanted` best under the metric."""
    values, vectors = torch.linalg.eigh(metric)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    spread = root @ wanted @ covariance @ wanted.T @ root
    count_of = min(count, len(spread))
    chosen = torch.linalg.eigh(spread).eigenvectors[:, -count_of:].flip(-1)
    rows = chosen.T @ root @ wanted
    if count_of == count:
        return rows
    basis = torch.linalg.qr(rows.T).Q  # more than what is wanted has: the rest are other directions of the inputs
    others = torch.linalg.eigh(covariance).eigenvectors.flip(-1)
    others = others - basis @ (basis.T @ others)
    return torch.cat([rows, torch.linalg.svd(others, full_matrices=False).U[:, : count - count_of].T])
