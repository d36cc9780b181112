"""Encoders that transformers does not have, exported to f32 and run by llama.cpp, give what their definition does."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from references.encoder_by_hand import EPSILON, jina_2, nomic_2, random_weights
from references.family_oracle import assert_equal_types, exported, token_ids
from references.llama_embeddings import llama_token_embeddings
from references.tiny_checkpoints import VOCABULARY
from safetensors.numpy import save_file

from edgepack.errors import UnsupportedModelError
from edgepack.export.mapped_model import open_model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

D, FF, HEADS, LAYERS, EXPERTS = 64, 96, 4, 4, 8
GELU_TABLE = 6e-3  # as in test_architectures
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


def affine(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def jina_2_shapes() -> dict[str, tuple[int, ...]]:
    embeddings = "embeddings."
    shapes: dict[str, tuple[int, ...]] = {embeddings + "word_embeddings.weight": (VOCABULARY, D)}
    shapes |= {embeddings + "token_type_embeddings.weight": (2, D)} | norm(embeddings + "LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= affine(f"{layer}attention.self.{part}", D, D)
        shapes |= affine(layer + "attention.output.dense", D, D) | norm(layer + "attention.output.LayerNorm")
        shapes |= {layer + "mlp.gated_layers.weight": (2 * FF, D)}
        shapes |= affine(layer + "mlp.wo", D, FF) | norm(layer + "mlp.layernorm")
    return shapes


def nomic_2_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (VOCABULARY, D)}
    shapes |= {"embeddings.token_type_embeddings.weight": (1, D)} | norm("emb_ln")
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}."
        shapes |= affine(layer + "attn.Wqkv", 3 * D, D) | affine(layer + "attn.out_proj", D, D)
        shapes |= norm(layer + "norm1") | norm(layer + "norm2")
        if i % 2 == 0:
            shapes |= affine(layer + "mlp.fc1", FF, D) | affine(layer + "mlp.fc2", D, FF)
        else:
            shapes |= {layer + "mlp.router.layer.weight": (EXPERTS, D)}
            shapes |= {f"{layer}mlp.experts.mlp.{name}": (EXPERTS * FF, D) for name in ("w1", "w2")}
    return shapes


def written(
    folder: Path, tokenizer: Path, config: dict[str, Any], weights: dict[str, NDArray[np.float32]], prefix: str = ""
) -> Path:
    folder.mkdir()
    save_file({prefix + name: tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


def assert_equal_embeddings(folder: Path, expected: NDArray[np.float64], out: Path) -> None:
    got = llama_token_embeddings(exported(folder, out), token_ids())
    assert np.abs(got - expected).max() <= GELU_TABLE * expected.std()
    assert_equal_types(folder, out)


def exact(weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
    return {name: tensor.astype(np.float64) for name, tensor in weights.items()}


def test_jina_2_has_alibi_and_a_gate(books: Path, tmp_path: Path) -> None:
    weights = random_weights(jina_2_shapes())
    folder = written(tmp_path / "model", books, JINA_2, weights, prefix="bert.")
    assert_equal_embeddings(folder, jina_2(exact(weights), token_ids(), HEADS, LAYERS), tmp_path / "model.gguf")


def test_nomic_2_has_experts_in_every_second_layer(books: Path, tmp_path: Path) -> None:
    weights = random_weights(nomic_2_shapes())
    zero = {f"encoder.layers.{i}.mlp.experts.bias": np.zeros(D, np.float32) for i in (1, 3)}
    folder = written(tmp_path / "model", books, NOMIC_2, weights | zero)
    expected = nomic_2(exact(weights), token_ids(), HEADS, LAYERS, experts=EXPERTS, used=2, base=10000.0)
    assert_equal_embeddings(folder, expected, tmp_path / "model.gguf")


def test_a_bias_of_experts_that_llama_cpp_leaves_out_is_refused(books: Path, tmp_path: Path) -> None:
    bias = {"encoder.layers.3.mlp.experts.bias": np.full(D, 0.1, np.float32)}
    folder = written(tmp_path / "model", books, NOMIC_2, random_weights(nomic_2_shapes()) | bias)
    with pytest.raises(UnsupportedModelError, match="layers.3.mlp.experts.bias' is not zero"):
        open_model(folder)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (JINA_2, {"position_embedding_type": "absolute"}, "position_embedding_type is 'absolute'"),
        (JINA_2, {"feed_forward_type": "original"}, "feed_forward_type is 'original'"),
        (NOMIC_2, {"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights is True"),
        (NOMIC_2, {"qkv_proj_bias": False}, "qkv_proj_bias is False"),
    ],
)
def test_what_the_graphs_lack_is_refused(
    config: dict[str, Any], changes: dict[str, Any], message: str, books: Path, tmp_path: Path
) -> None:
    folder = written(tmp_path / "model", books, config | changes, {})
    with pytest.raises(UnsupportedModelError, match=message):
        open_model(folder)
