"""RWKV 7, which transformers does not have: its recurrence written out token by token in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

D, HEAD, FF, LAYERS, VOCABULARY = 128, 64, 256, 3, 4096
RANKS = {"w": 32, "a": 64, "v": 32, "g": 64}
CONFIG: dict[str, Any] = {
    "architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7", "hidden_size": D, "intermediate_size": FF,
    "num_hidden_layers": LAYERS, "head_dim": HEAD, "norm_eps": 1e-5, "hidden_act": "sqrelu", "norm_first": True,
    "norm_bias": True, "attn": None, "vocab_size": VOCABULARY, "tie_word_embeddings": False,
    "decay_low_rank_dim": 32, "a_low_rank_dim": 64, "v_low_rank_dim": 32, "gate_low_rank_dim": 64,
}  # fmt: skip
Tensors = dict[str, torch.Tensor]


def random_tensors() -> Tensors:
    """As flash-linear-attention names them."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    def vector(base: float = 0.0) -> torch.Tensor:
        return base + 0.3 * torch.randn(D, generator=generator)

    def norm(name: str) -> Tensors:
        return {f"{name}.weight": vector(1.0), f"{name}.bias": vector()}

    found = {"model.embeddings.weight": matrix(VOCABULARY, D), "lm_head.weight": matrix(VOCABULARY, D)}
    found |= norm("model.norm") | norm("model.layers.0.pre_norm")
    for layer in range(LAYERS):
        at, mix = f"model.layers.{layer}.", f"model.layers.{layer}.attn."
        found |= norm(at + "attn_norm") | norm(at + "ffn_norm") | norm(mix + "g_norm")
        found |= {f"{mix}x_{part}": vector(0.5).reshape(1, 1, D) for part in "rwkvag"}
        found |= {f"{mix}{part}_proj.weight": matrix(D, D) for part in "rkvo"}
        found |= {mix + "k_k": vector(0.8), mix + "k_a": vector(1.0), mix + "r_k": vector().reshape(-1, HEAD)}
        for part, rank in RANKS.items():
            if part == "v" and layer == 0:
                continue
            found |= {f"{mix}{part}_lora.lora.0.weight": matrix(rank, D)}
            found |= {f"{mix}{part}_lora.lora.2.weight": matrix(D, rank)}
            found |= {} if part == "g" else {f"{mix}{part}_lora.lora.2.bias": vector()}
        found |= {at + "ffn.x_k": vector(0.5), at + "ffn.key.weight": matrix(FF, D)}
        found |= {at + "ffn.value.weight": matrix(D, FF)}
    return found


def reference_logits(tensors: Tensors, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The recurrence of RWKV 7 (arXiv 2503.14456), one token after the other."""
    t = {name: tensor.double() for name, tensor in tensors.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (D,), t[f"{name}.weight"], t[f"{name}.bias"], 1e-5)

    def shifted(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros(1, D, dtype=x.dtype), x[:-1]]) - x

    x = norm(t["model.embeddings.weight"][torch.tensor(ids)], "model.layers.0.pre_norm")
    first = torch.empty(0)
    for layer in range(LAYERS):
        at, mix = f"model.layers.{layer}.", f"model.layers.{layer}.attn."
        h = norm(x, at + "attn_norm")
        change = shifted(h)
        of = {part: h + change * t[f"{mix}x_{part}"].reshape(D) for part in "rwkvag"}

        def low(part: str, inner: torch.Tensor, mix: str = mix) -> torch.Tensor:
            return inner @ t[f"{mix}{part}_lora.lora.2.weight"].T + t.get(f"{mix}{part}_lora.lora.2.bias", 0.0)

        def into(part: str, mix: str = mix, of: Tensors = of) -> torch.Tensor:
            return of[part] @ t[f"{mix}{part}_lora.lora.0.weight"].T

        r, k, v = (of[part] @ t[f"{mix}{part}_proj.weight"].T for part in "rkv")
        decay = torch.exp(-0.606531 * torch.sigmoid(low("w", torch.tanh(into("w")))))
        a, g = torch.sigmoid(low("a", into("a"))), low("g", torch.sigmoid(into("g")))
        if layer == 0:
            first = v
        else:
            v = v + (first - v) * torch.sigmoid(low("v", into("v")))
        heads = (len(ids), D // HEAD, HEAD)
        kk = torch.nn.functional.normalize((k * t[mix + "k_k"]).reshape(heads), dim=-1)
        k = k * (1 + (a - 1) * t[mix + "k_a"])
        r, k, v, a, decay = (each.reshape(heads) for each in (r, k, v, a, decay))
        state, read = torch.zeros(D // HEAD, HEAD, HEAD, dtype=x.dtype), []
        for i in range(len(ids)):
            removed = (state @ -kk[i, :, :, None]) * (kk[i] * a[i])[:, None]
            state = state * decay[i][:, None] + removed + v[i, :, :, None] * k[i][:, None]
            read.append((state @ r[i, :, :, None])[..., 0])
        y = torch.nn.functional.layer_norm(torch.stack(read), (HEAD,), eps=64e-5).reshape(-1, D)
        y = y * t[mix + "g_norm.weight"] + t[mix + "g_norm.bias"]
        y = y + ((r * k * t[mix + "r_k"]).sum(-1, keepdim=True) * v).reshape(-1, D)
        x = x + (y * g) @ t[mix + "o_proj.weight"].T
        h = norm(x, at + "ffn_norm")
        inner = h + shifted(h) * t[at + "ffn.x_k"]
        x = x + torch.relu(inner @ t[at + "ffn.key.weight"].T) ** 2 @ t[at + "ffn.value.weight"].T
    logits: NDArray[np.float32] = (norm(x, "model.norm") @ t["lm_head.weight"].T).float().numpy()
    return logits
