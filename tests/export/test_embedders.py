"""Each family of embedders and rerankers, exported to f32 and run by llama.cpp, gives what transformers computes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from references.embedder_oracle import TOKENS, embedding_error, scoring_error
from references.llama_embeddings import llama_pooled
from references.llama_quantize import llama_types
from references.tiny_checkpoints import VOCABULARY, TinyModel, random_model, write_checkpoint
from references.tiny_encoders import EMBEDDERS, RANKERS
from safetensors.torch import load_file, save_file

from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path


def exported(tiny: TinyModel, tokenizer: Path, folder: Path) -> tuple[Any, Path]:
    """The model of torch, and its file."""
    model = random_model(tiny)
    write_checkpoint(model, folder / "model", tokenizer, fused_experts=tiny.fused_experts)
    write_gguf(plan_export(open_model(folder / "model"), find_target("f32")), folder / "model.gguf")
    return model, folder / "model.gguf"


def assert_equal_types(folder: Path) -> None:
    mapped = open_model(folder / "model")
    for label in ("Q4_K_M", "IQ3_M"):
        target = find_target(label)
        types = {info.name: info.type.name for info in plan_export(mapped, target).infos}
        assert types == llama_types(folder / "model.gguf", target.file_type)


@pytest.mark.parametrize("tiny", EMBEDDERS, ids=lambda tiny: tiny.name)
def test_embeddings_of_every_token_equal_those_of_transformers(tiny: TinyModel, books: Path, tmp_path: Path) -> None:
    model, path = exported(tiny, books, tmp_path)
    assert embedding_error(model, path) <= tiny.tolerance
    assert_equal_types(tmp_path)


@pytest.mark.parametrize("tiny", RANKERS, ids=lambda tiny: tiny.name)
def test_scores_equal_those_of_transformers(tiny: TinyModel, books: Path, tmp_path: Path) -> None:
    model, path = exported(tiny, books, tmp_path)
    assert scoring_error(tiny, model, path) <= tiny.tolerance
    assert_equal_types(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_reranker_that_answers_gives_the_probability_of_yes(tied: bool, books: Path, tmp_path: Path) -> None:
    """Known by its name alone, as Qwen3-Reranker is; the bundled vocabulary's last word makes room for its yes."""
    tiny = TinyModel("reranker", "Qwen3", {"head_dim": 32, "tie_word_embeddings": tied})
    model, folder = random_model(tiny), tmp_path / "Qwen3-Reranker-tiny"
    write_checkpoint(model, folder, books)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["yes"] = vocabulary.pop("".join(tokenizer["model"]["merges"].pop()))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    ids = [vocabulary["yes"], vocabulary["no"]]
    write_gguf(plan_export(open_model(folder), find_target("f32")), tmp_path / "model.gguf")
    with torch.no_grad():
        answers = model(torch.tensor(TOKENS)[None]).logits[0, -1, ids].softmax(0).numpy()
    np.testing.assert_allclose(llama_pooled(tmp_path / "model.gguf", TOKENS), answers, atol=1e-4)
    assert "{query}" in open_model(folder).metadata["tokenizer.chat_template.rerank"].value


def written(folder: Path, out: Path) -> bytes:
    write_gguf(plan_export(open_model(folder), find_target("f32")), out)
    return out.read_bytes()


NOMIC_AS_PUBLISHED = {
    "architectures": ["NomicBertModel"],
    "model_type": "nomic_bert",
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_head": 4,
    "n_inner": 96,
    "n_layer": 2,
    "n_positions": 1024,
    "max_trained_positions": 256,
    "layer_norm_epsilon": 0.01,
    "activation_function": "swiglu",
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "qkv_proj_bias": False,
    "prenorm": False,
    "causal": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def test_a_nomic_bert_as_published_is_the_same_file(books: Path, tmp_path: Path) -> None:
    tiny = next(tiny for tiny in EMBEDDERS if tiny.name == "nomic-bert")
    folder = write_checkpoint(random_model(tiny), tmp_path / "model", books)
    expected = written(folder, tmp_path / "expected.gguf")
    (folder / "config.json").write_text(json.dumps(NOMIC_AS_PUBLISHED))
    assert written(folder, tmp_path / "published.gguf") == expected


def test_a_jina_3_as_published_is_the_same_file_without_its_adapters(books: Path, tmp_path: Path) -> None:
    tiny = next(tiny for tiny in EMBEDDERS if tiny.name == "jina-3")
    folder = write_checkpoint(random_model(tiny), tmp_path / "model", books)
    expected = written(folder, tmp_path / "expected.gguf")
    adapted = ("_embeddings.weight", "Wqkv.weight", "out_proj.weight", "fc1.weight", "fc2.weight")
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith(adapted):
            module = "roberta." + name.removesuffix("weight") + "parametrizations.weight."
            tensors |= {module + "original": tensor, module + "0.lora_A": torch.ones(5, 4, 2)}
        else:
            tensors["roberta." + name] = tensor
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"architectures": ["XLMRobertaModel"], "rotary_emb_base": 20000.0, "lora_adaptations": ["a", "b"]}
    (folder / "config.json").write_text(json.dumps(config | {"position_embedding_type": "rotary"}))
    assert written(folder, tmp_path / "published.gguf") == expected
    assert "2 adapters for tasks are left out" in open_model(folder).notes
