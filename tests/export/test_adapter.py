"""LoRA adapters: merged rows equal peft's merged model; apart, llama.cpp gives the merged model's logits."""

from __future__ import annotations

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from llama_cpp import Llama
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgepack.cli import execute as run
from edgepack.errors import AdapterError, UsageError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.lora.adapter import AdaptedTensors, read_adapter
from edgepack.export.mapped_model import open_model
from edgepack.model import read_tensor

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS = {
    "attention": {"target_modules": ATTENTION, "r": 4, "lora_alpha": 8},
    "all linear": {"target_modules": "all-linear", "r": 3, "lora_alpha": 5},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8,
        "rank_pattern": {"layers.1.self_attn.q_proj": 6}, "alpha_pattern": {"q_proj": 3},
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"], "r": 4, "lora_alpha": 8},
    "dora": {"target_modules": ["q_proj", "up_proj"], "r": 4, "lora_alpha": 8, "use_dora": True},
    "saved": {"target_modules": ["q_proj"], "r": 4, "lora_alpha": 8, "modules_to_save": ["norm"]},
}  # fmt: skip
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom."


def make_adapter(books, folder, **options):
    """An adapter with random factors; returns the merged model's state."""
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(books, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.normal_(std=0.05)
            if "magnitude" in name or "modules_to_save" in name:
                parameter.mul_(1.1)
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_merged_rows_equal_pefts(books, tmp_path, kind):
    merged = make_adapter(books, tmp_path, **KINDS[kind])
    base = open_checkpoint(books).tensors
    ours = AdaptedTensors(base, read_adapter(tmp_path, base))
    changed = 0
    for name in base.specs:
        np.testing.assert_allclose(read_tensor(ours, name), merged[name].numpy(), rtol=1e-4, atol=2e-6)
        changed += not np.array_equal(read_tensor(ours, name), read_tensor(base, name))
    assert changed
    np.testing.assert_array_equal(ours.read_rows("model.layers.1.mlp.up_proj.weight", 3, 9),
                                  read_tensor(ours, "model.layers.1.mlp.up_proj.weight")[3:9])  # fmt: skip


def logits(path, **options):
    llama = Llama(str(path), n_ctx=64, logits_all=True, verbose=False, **options)
    llama.eval(llama.tokenize(TEXT.encode()))
    return np.array(llama.scores[: llama.n_tokens])


@pytest.fixture
def untied(books, tmp_path):
    """The bundled model with a head of its own."""
    folder = tmp_path / "untied"
    shutil.copytree(books, folder)
    (folder / "model.safetensors").unlink()
    tensors = load_file(books / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_factors_of_a_tied_embedding_are_not_written_apart(books, tmp_path, capsys):
    make_adapter(books, tmp_path / "adapter", **KINDS["embedding"])
    export = ["export", str(books), "--target", "gguf-f32", "--adapter", str(tmp_path / "adapter"), "--dry-run"]
    assert run([*export, "--adapter-mode", "separate"]) == AdapterError.exit_code
    assert "the head too" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["attention", "patterns", "embedding"])
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_apart_gives_the_merged_models_logits(books, untied, tmp_path, kind, capsys):
    books = untied if kind == "embedding" else books
    make_adapter(books, tmp_path / "adapter", **KINDS[kind])
    export = ["export", str(books), "--target", "gguf-f32", "--adapter", str(tmp_path / "adapter")]
    assert run([*export, "-o", str(tmp_path / "merged.gguf")]) == 0
    assert run([*export, "--adapter-mode", "separate", "-o", str(tmp_path / "base.gguf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter"] == str(tmp_path / "base-lora.gguf")
    merged = logits(tmp_path / "merged.gguf")
    apart = logits(tmp_path / "base.gguf", lora_path=str(tmp_path / "base-lora.gguf"))
    base = logits(tmp_path / "base.gguf")
    assert np.abs(apart - merged).max() < 1e-3 * merged.std()
    assert np.abs(base - merged).max() > 0.1 * merged.std()


@pytest.fixture
def adapter(books, tmp_path):
    """An adapter of one module, written by hand."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    tensors = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight": torch.ones(shape)
        for part, shape in {"A": (2, 256), "B": (256, 2)}.items()
    }

    def write(config_change=None, tensors_change=None):
        folder = tmp_path / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({**config, **(config_change or {})}))
        kept = {name: tensor for name, tensor in {**tensors, **(tensors_change or {})}.items() if tensor is not None}
        save_file(kept, folder / "adapter_model.safetensors")
        return folder

    return write


PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "tensors", "needle"),
    [
        ({"peft_type": "LOHA"}, {}, "LOHA"),
        ({"lora_bias": True}, {}, "lora_bias"),
        ({"lora_alpha": "4"}, {}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, {}, "lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, {}, "regular expression"),
        ({"alpha_pattern": [1]}, {}, "alpha_pattern"),
        ({}, {f"{PREFIX}.lora_B.weight": None}, "expected lora_A and lora_B"),
        ({}, {f"{PREFIX}.lora_B.weight": torch.ones(256, 3)}, r"expected \[rank, in\]"),
        ({}, {f"{PREFIX}.lora_B.weight": torch.ones(128, 2)}, "another model"),
        ({}, {"base_model.model.nothing.lora_A.weight": torch.ones(2, 2)}, "expected lora_A and lora_B"),
        ({}, {"base_model.model.nothing.weight": torch.ones(2, 2)}, "another model"),
        ({}, {"base_model.model.model.norm.weight": torch.ones(7)}, "another model"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(books, adapter, config, tensors, needle):
    folder = adapter(config, tensors)
    with pytest.raises(AdapterError, match=needle) as error:
        read_adapter(folder, open_checkpoint(books).tensors)
    assert "\n" not in str(error.value)


def test_a_gguf_takes_no_adapter(books, adapter, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="Hugging Face folder"):
        open_model(tmp_path / "model.gguf", adapter=adapter())


def test_what_is_not_of_low_rank_is_merged_or_refused(books, adapter, tmp_path):
    norm = load_file(books / "model.safetensors")["model.norm.weight"]
    folder = adapter({}, {"base_model.model.model.norm.weight": norm.float() * 2})
    command = ["export", str(books), "--target", "gguf-f16", "--adapter", str(folder), "--dry-run"]
    assert run(command) == 0
    assert run([*command, "--adapter-mode", "separate"]) == AdapterError.exit_code
