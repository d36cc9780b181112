"""Tiny random checkpoints of the encoders in `encoder_by_hand`, named as they are published."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
from references.encoder_by_hand import EPSILON, jina_2, nomic_2, random_weights
from references.family_oracle import token_ids
from references.tiny_checkpoints import VOCABULARY
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

D, FF, HEADS, LAYERS, EXPERTS = 64, 96, 4, 4, 8
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
JINA_2: dict[str, Any] = TOKENS | {
    "architectures": ["JinaBertForMaskedLM"],
    "model_type": "bert",
    "hidden_size": D,
    "intermediate_size": FF,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "hidden_act": "gelu",
    "feed_forward_type": "geglu",
    "position_embedding_type": "alibi",
    "layer_norm_eps": EPSILON,
    "max_position_embeddings": 256,
    "type_vocab_size": 2,
}
NOMIC_2: dict[str, Any] = TOKENS | {
    "architectures": ["NomicBertModel"],
    "model_type": "nomic_bert",
    "n_embd": D,
    "n_inner": FF,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_positions": 256,
    "activation_function": "gelu",
    "layer_norm_epsilon": EPSILON,
    "rotary_emb_base": 10000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "prenorm": False,
    "causal": False,
    "type_vocab_size": 1,
    "moe_every_n_layers": 2,
    "moe_top_k": 2,
    "num_experts": EXPERTS,
    "moe_normalize_expert_weights": False,
}


def _affine(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def jina_2_shapes() -> dict[str, tuple[int, ...]]:
    embeddings = "embeddings."
    shapes: dict[str, tuple[int, ...]] = {embeddings + "word_embeddings.weight": (VOCABULARY, D)}
    shapes |= {embeddings + "token_type_embeddings.weight": (2, D)} | _norm(embeddings + "LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= _affine(f"{layer}attention.self.{part}", D, D)
        shapes |= _affine(layer + "attention.output.dense", D, D) | _norm(layer + "attention.output.LayerNorm")
        shapes |= {layer + "mlp.gated_layers.weight": (2 * FF, D)}
        shapes |= _affine(layer + "mlp.wo", D, FF) | _norm(layer + "mlp.layernorm")
    return shapes


def nomic_2_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (VOCABULARY, D)}
    shapes |= {"embeddings.token_type_embeddings.weight": (1, D)} | _norm("emb_ln")
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}."
        shapes |= _affine(layer + "attn.Wqkv", 3 * D, D) | _affine(layer + "attn.out_proj", D, D)
        shapes |= _norm(layer + "norm1") | _norm(layer + "norm2")
        if i % 2 == 0:
            shapes |= _affine(layer + "mlp.fc1", FF, D) | _affine(layer + "mlp.fc2", D, FF)
        else:
            shapes |= {layer + "mlp.router.layer.weight": (EXPERTS, D)}
            shapes |= {f"{layer}mlp.experts.mlp.{name}": (EXPERTS * FF, D) for name in ("w1", "w2")}
    return shapes


def written(
    folder: Path, tokenizer: Path, config: dict[str, Any], weights: dict[str, NDArray[np.float32]], prefix: str = ""
) -> Path:
    """Write it."""
    folder.mkdir()
    save_file({prefix + name: tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


def jina_2_checkpoint(folder: Path, tokenizer: Path) -> NDArray[np.float64]:
    """Alibi and a gate."""
    weights = random_weights(jina_2_shapes())
    written(folder, tokenizer, JINA_2, weights, prefix="bert.")
    return jina_2(_exact(weights), token_ids(), HEADS, LAYERS)


def nomic_2_checkpoint(folder: Path, tokenizer: Path) -> NDArray[np.float64]:
    """Experts in every second layer."""
    weights = random_weights(nomic_2_shapes())
    zero = {f"encoder.layers.{i}.mlp.experts.bias": np.zeros(D, np.float32) for i in (1, 3)}
    written(folder, tokenizer, NOMIC_2, weights | zero)
    return nomic_2(_exact(weights), token_ids(), HEADS, LAYERS, experts=EXPERTS, used=2, base=10000.0)


def _exact(weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
    return {name: tensor.astype(np.float64) for name, tensor in weights.items()}
