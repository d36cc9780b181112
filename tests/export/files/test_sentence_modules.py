"""sentence-transformers' modules.json: followed in any folder and spelling, what llama.cpp lacks refused by name."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from edgepack.cli import execute as run
from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.mapped_model import open_model
from edgepack.export.rules.pooling import dense_tensors, pooling_metadata
from edgepack.export.sentence_modules import read_modules

if TYPE_CHECKING:
    from pathlib import Path

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "hello", "world", "Hello"]
TRANSFORMER, POOLING = ("", "Transformer"), ("1_Pooling", "Pooling")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tiny random BERT with its words, in a folder of its own."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCAB), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    folder = tmp_path / "model"
    transformers.BertModel(config).float().eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    )
    return folder


def modules(folder: Path, *listed: tuple[str, str], package: str = "sentence_transformers.models") -> None:
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"} for i, (path, kind) in enumerate(listed)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))


def settings(folder: Path, **values: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))


def keys(folder: Path) -> dict[str, Any]:
    return {key: value.value for key, value in open_model(folder).metadata.items()}


SPELLINGS = {
    "a flag each": ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2),
    "a mean": ({"pooling_mode_mean_tokens": True}, 1),
    "the last token": ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}, 3),
    "version 6": ({"pooling_mode": "cls", "embedding_dimension": 32, "include_prompt": True}, 2),
    "version 6, a list of one": ({"pooling_mode": ["lasttoken"]}, 3),
    "version 6 over the flags": ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, 1),
    "nothing on": ({"pooling_mode_cls_token": False}, 1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("folder", ["1_Pooling", "0_Pooling", "pool/mean"])
@pytest.mark.parametrize(
    "package", ["sentence_transformers.models", "sentence_transformers.sentence_transformer.modules.pooling"]
)
def test_the_pooling_is_found_in_any_folder_and_spelling(bert: Path, spelling: str, folder: str, package: str) -> None:
    values, expected = SPELLINGS[spelling]
    settings(bert / folder, **values)
    modules(bert, TRANSFORMER, (folder, "Pooling"), package=package)
    assert keys(bert)["bert.pooling_type"] == expected


def test_a_stale_pooling_beside_modules_json_is_not_read(bert: Path) -> None:
    settings(bert / "1_Pooling", pooling_mode_cls_token=True)
    settings(bert / "new", pooling_mode="lasttoken")
    modules(bert, TRANSFORMER, ("new", "Pooling"))
    assert keys(bert)["bert.pooling_type"] == 3
    modules(bert, TRANSFORMER)
    assert "bert.pooling_type" not in keys(bert)


def test_a_transformer_in_a_folder_below_is_found_from_both(bert: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    settings(root / "1_Pooling", pooling_mode="cls")
    bert.rename(root / "0_Transformer")
    modules(root, ("0_Transformer", "Transformer"), POOLING)
    assert keys(root)["bert.pooling_type"] == keys(root / "0_Transformer")["bert.pooling_type"] == 2


REFUSED = {
    "max": ("Pooling", {"pooling_mode": "max"}),
    "cls_token and mean_tokens": ("Pooling", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),
    "weightedmean": ("Pooling", {"pooling_mode_weightedmean_tokens": True}),
    r"Dense\(32 -> 16, Tanh\)": ("Dense", {"in_features": 32, "out_features": 16, "bias": True}),
    r"Dense\(32 -> 32, Identity\)": ("Dense", {"in_features": 32, "out_features": 32, "bias": False,
                                               "activation_function": "torch.nn.modules.linear.Identity"}),
    "LayerNorm": ("LayerNorm", {"dimension": 32}),
    "WeightedLayerPooling": ("WeightedLayerPooling", {}),
    "CNN": ("CNN", {}),
    "SpladePooling": ("SpladePooling", {}),
}  # fmt: skip


@pytest.mark.parametrize("needle", REFUSED)
def test_what_llama_cpp_does_not_have_is_refused_by_name(bert: Path, needle: str) -> None:
    kind, values = REFUSED[needle]
    settings(bert / "1_Pooling", pooling_mode="mean")
    settings(bert / "2", **values)
    modules(bert, TRANSFORMER, *([] if kind == "Pooling" else [POOLING]), ("2", kind))
    with pytest.raises(UnsupportedModelError, match=needle):
        open_model(bert)


def test_normalisation_and_prompts_reach_the_embeddings(bert: Path, tmp_path: Path, capsys) -> None:
    settings(bert / "1_Pooling", pooling_mode="mean", include_prompt=False)
    modules(bert, TRANSFORMER, POOLING, ("2_Normalize", "Normalize"), ("", "Dropout"))
    prompts = {"query": "hello ", "document": ""}
    (bert / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": prompts, "default_prompt_name": "query"})
    )
    path = tmp_path / "x.gguf"
    assert run(["export", str(bert), "--target", "gguf-f32", "-o", str(path)]) == 0
    assert "leaves the prompt's tokens out" in capsys.readouterr().err

    def embed(*options: str, text: str = "world") -> np.ndarray:
        assert run(["embed", str(path), text, "--json", *options]) == 0
        return np.array(json.loads(capsys.readouterr().out)["embeddings"][0])

    assert np.linalg.norm(embed()) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(embed("--no-normalize")) > 1.5
    np.testing.assert_allclose(embed(), embed("--prompt-name", "query"), atol=1e-6)
    assert run(["embed", str(path), "world", "--prompt-name", "document"]) == 2
    assert "expected one of query" in capsys.readouterr().err
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(bert)("hello world", return_tensors="pt")
    with torch.no_grad():
        mean = transformers.BertModel.from_pretrained(bert).eval()(**ids).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(embed(), (mean / mean.norm()).numpy(), atol=1e-3)


def test_lower_casing_before_the_tokenizer_is_the_tokenizers(bert: Path) -> None:
    settings(bert / "1_Pooling", pooling_mode="mean")
    modules(bert, TRANSFORMER, POOLING)
    assert keys(bert)["tokenizer.ggml.normalizer.lowercase"] is False
    (bert / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True, "max_seq_length": 16}))
    assert keys(bert)["tokenizer.ggml.normalizer.lowercase"] is True


def test_two_plain_layers_of_embedding_gemma_are_taken_over(tmp_path: Path) -> None:
    layers = {"2_Dense": (8, 12), "3_Dense": (12, 8)}
    settings(tmp_path / "1_Pooling", pooling_mode="mean")
    for name, (inner, outer) in layers.items():
        settings(
            tmp_path / name, in_features=inner, out_features=outer, bias=False, activation_function="torch.nn.Identity"
        )
        save_file({"linear.weight": torch.arange(96.0).reshape(outer, inner)}, tmp_path / name / "model.safetensors")
    modules(tmp_path, TRANSFORMER, POOLING, *((name, "Dense") for name in layers))
    config: Any = SimpleNamespace(folder=tmp_path, hidden=8)
    found = {key.rpartition(".")[2]: value.value for key, value in pooling_metadata(config, "gemma-embedding").items()}
    assert found == {"pooling_type": 1, "dense_2_feat_in": 8, "dense_2_feat_out": 12, "dense_3_feat_in": 12,
                     "dense_3_feat_out": 8}  # fmt: skip
    rows = dense_tensors(config, "gemma-embedding")
    assert {name: each.shape for name, each in rows.items()} == {"dense_2.weight": (12, 8), "dense_3.weight": (8, 12)}
    np.testing.assert_array_equal(rows["dense_3.weight"].read(0, 8), np.arange(96.0, dtype=np.float32).reshape(8, 12))
    (tmp_path / "3_Dense/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        dense_tensors(config, "gemma-embedding")


@pytest.mark.parametrize(
    "content",
    ["{}", "[1]", '[{"type": 3, "path": ""}]', '[{"type": "x.Transformer", "path": "../x"}]', "[", '[{"path": ""}]'],
)
def test_a_broken_modules_json_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        read_modules(tmp_path)
    assert "\n" not in str(error.value)
