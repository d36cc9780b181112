"""PEFT adapters: what `PeftModel.from_pretrained` computes is what is merged, or the setting is refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.tiny_llama import EMBEDDING, HEAD, change

from edgepack.cli import execute as run
from edgepack.errors import AdapterError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.lora.merging import merge_adapter
from edgepack.export.lora.names import bare, find_tensor
from edgepack.export.mapped_model import open_model
from edgepack.model import read_tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgepack.model import Checkpoint

    Tiny = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore")
Q = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
IDS = torch.tensor([[3, 17, 5, 30, 8, 11, 2, 25]])


def load(folder: Path) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def trained(
    base: Path, folder: Path, *, tokens: int | None = None, save: bool | str = "auto", **settings: Any
) -> np.ndarray:
    """An adapter with random changes, saved; what PeftModel computes once it is loaded again."""
    model = load(base)
    if tokens:
        model.resize_token_embeddings(tokens)
        model.save_pretrained(base.with_name("resized"))
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{**Q, **settings}))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    adapted.save_pretrained(folder, save_embedding_layers=save)
    fresh = load(base.with_name("resized") if tokens else base)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(fresh, folder).eval()(IDS).logits[0].numpy()


def computed(checkpoint: Checkpoint) -> np.ndarray:
    """What transformers computes with the tensors and the configuration that edgepack reads."""
    config = transformers.LlamaConfig(**{k: v for k, v in checkpoint.config.items() if k != "architectures"})
    model = transformers.LlamaForCausalLM(config).float().eval()
    tensors = {name: torch.from_numpy(read_tensor(checkpoint.tensors, name)) for name in checkpoint.tensors.specs}
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    with torch.no_grad():
        return model(IDS).logits[0].numpy()


HONOURED = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embedding and head": {"target_modules": ["lm_head", "embed_tokens"]},
    "both, kept tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "embedding saved": {"modules_to_save": ["embed_tokens"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "both saved": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "tokens": {"trainable_token_indices": [3, 30, 39]},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [3, 30]}},
    "tokens of both": {"trainable_token_indices": {"embed_tokens": [3, 30], "lm_head": [4]}},
    "unchanged embeddings saved": {"save": True},
    "tokens added": {"tokens": 44, "save": True},
    "tokens added and trained": {"tokens": 44, "trainable_token_indices": [3, 42], "save": True},
    "another beginning": {"init_lora_weights": "orthogonal"},
    "a beginning in minor components": {"init_lora_weights": "mica"},
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", HONOURED)
def test_a_merged_adapter_computes_what_peft_computes(tiny: Tiny, tmp_path: Path, kind: str, tied: bool) -> None:
    base = tiny(tie_word_embeddings=tied)
    if not tied and HONOURED[kind].get("ensure_weight_tying"):
        pytest.skip("nothing to tie")
    expected = trained(base, tmp_path / "adapter", **HONOURED[kind])
    merged = merge_adapter(open_checkpoint(base), tmp_path / "adapter")
    ours = computed(merged)
    np.testing.assert_allclose(ours, expected, atol=2e-5 * expected.std() + 1e-6)
    if tied and merged.config["tie_word_embeddings"] is False:
        assert any("kept apart" in note for note in merged.notes)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_pefts_own_merge_of_one_of_two_tied_matrices_is_another_function(
    tiny: Tiny, tmp_path: Path, module: str
) -> None:
    base = tiny(tie_word_embeddings=True)
    expected = trained(base, tmp_path / "adapter", target_modules=[module], r=8, lora_alpha=32)
    merged = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter").merge_and_unload().eval()
    with torch.no_grad():
        theirs = merged(IDS).logits[0].numpy()
    ours = computed(merge_adapter(open_checkpoint(base), tmp_path / "adapter"))
    assert np.abs(ours - expected).max() < 1e-4 * expected.std()
    assert np.abs(theirs - expected).max() > expected.std()


REFUSED = {
    "init_lora_weights 'pissa'": {"init_lora_weights": "pissa"},
    "init_lora_weights 'pissa_niter_4'": {"init_lora_weights": "pissa_niter_4"},
    "init_lora_weights 'olora'": {"init_lora_weights": "olora"},
    "init_lora_weights 'corda'": {"init_lora_weights": "corda"},
    "init_lora_weights 'loftq'": {"init_lora_weights": "loftq"},
    "init_lora_weights 'lora_ga'": {"init_lora_weights": "lora_ga"},
    "layer_replication": {"layer_replication": [[0, 2], [0, 2]]},
    "kasa_config": {"kasa_config": {"r": 1}},
    "velora_config": {"velora_config": {"num_groups": 4}},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "target_parameters": {"target_parameters": ["experts.gate_up_proj"]},
    "use_bdlora": {"use_bdlora": {"nblocks": 2}},
    "use_qalora": {"use_qalora": True},
    "monteclora_config": {"monteclora_config": {"num_samples": 2}},
    "arrow_config": {"arrow_config": {"top_k": 2}},
    "lora_bias": {"lora_bias": True},
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mode", ["merge", "separate"])
def test_a_setting_that_cannot_be_honoured_is_refused_by_name(
    speaking: Tiny, tmp_path: Path, capsys, name, mode
) -> None:
    base = speaking()
    trained(base, tmp_path / "adapter")
    change(tmp_path / "adapter/adapter_config.json", **REFUSED[name])
    command = ["export", str(base), "--target", "gguf-f16", "--adapter", str(tmp_path / "adapter"), "--dry-run"]
    assert run([*command, "--adapter-mode", mode]) == AdapterError.exit_code
    message = capsys.readouterr().err
    assert name in message
    assert "another model" not in message


def test_a_setting_that_peft_does_not_have_is_passed_over_and_said(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny()
    trained(base, tmp_path / "adapter")
    change(tmp_path / "adapter/adapter_config.json", trainer_version="3")
    assert (
        "adapter: trainer_version is no setting of peft: passed over"
        in merge_adapter(open_checkpoint(base), tmp_path / "adapter").notes
    )


RENAMED = {
    "compiled": ("base_model.model.", "base_model.model._orig_mod."),
    "multimodal, transformers 4": ("base_model.model.model.", "base_model.model.language_model.model."),
    "multimodal, transformers 5": ("base_model.model.model.", "base_model.model.model.language_model."),
    "named adapter": (".lora_A.weight", ".lora_A.default.weight"),
    "without peft's prefix": ("base_model.model.", ""),
}


@pytest.mark.parametrize("kind", RENAMED)
def test_names_of_a_wrapped_model_mean_the_same_tensors(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    base, folder = tiny(), tmp_path / "adapter"
    expected = trained(base, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name.replace(*RENAMED[kind]): t for name, t in tensors.items()}, folder / "adapter_model.safetensors")
    ours = computed(merge_adapter(open_checkpoint(base), folder))
    np.testing.assert_allclose(ours, expected, atol=2e-5 * expected.std() + 1e-6)


def test_a_name_that_means_two_tensors_means_none() -> None:
    assert find_tensor("model.norm.weight", ["a.norm.weight", "b.norm.weight"]) is None
    assert find_tensor("model.norm.weight", ["language_model.model.norm.weight"]) == "language_model.model.norm.weight"
    assert bare("base_model.model.model.layers.0.q.weight") == "layers.0.q.weight"
    assert bare("model") == "model"


def test_only_an_adapter_of_another_shape_is_another_models(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny("wide", hidden_size=64), tmp_path / "adapter")
    with pytest.raises(AdapterError, match="another model"):
        merge_adapter(open_checkpoint(tiny("narrow")), tmp_path / "adapter")
    trained(tiny("deep", num_hidden_layers=3), tmp_path / "deep-adapter")
    with pytest.raises(AdapterError, match="another model"):
        merge_adapter(open_checkpoint(tiny("shallow", num_hidden_layers=2)), tmp_path / "deep-adapter")


def test_added_tokens_without_their_rows_are_said_so(tiny: Tiny, tmp_path: Path) -> None:
    base, folder = tiny(), tmp_path / "adapter"
    trained(base, folder, tokens=44, target_modules=["embed_tokens"])
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if "base_layer" not in name}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(AdapterError, match="tokens were added in training"):
        merge_adapter(open_checkpoint(base), folder)


def test_an_adapter_brings_its_own_tokenizer_and_template(speaking: Tiny, tmp_path: Path) -> None:
    base, folder = speaking(), tmp_path / "adapter"
    trained(base, folder)
    plain = open_model(base, adapter=folder)
    (folder / "chat_template.jinja").write_text("ADAPTER")
    templated = open_model(base, adapter=folder)
    assert templated.metadata["tokenizer.chat_template"].value == "ADAPTER"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    change(folder / "tokenizer_config.json", eos_token="the")
    own = open_model(base, adapter=folder)
    key = "tokenizer.ggml.eos_token_id"
    assert own.metadata[key] != plain.metadata[key]
    assert any("the adapter's own is taken" in note for note in own.notes)


def test_an_adapter_in_the_models_own_folder_is_merged(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny()
    expected = trained(base, tmp_path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).rename(base / name)
    merged = open_checkpoint(base)
    np.testing.assert_allclose(computed(merged), expected, atol=2e-5 * expected.std() + 1e-6)
    assert any("own folder" in note for note in merged.notes)
    (base / "adapter_model.safetensors").unlink()
    assert any("passed over" in note for note in open_checkpoint(base).notes)


@pytest.mark.parametrize("kind", ["head", "embedding saved", "tokens"])
def test_what_is_not_of_low_rank_on_its_own_is_not_written_apart(speaking: Tiny, tmp_path: Path, capsys, kind) -> None:
    base = speaking(tie_word_embeddings=True)
    trained(base, tmp_path / "adapter", **HONOURED[kind])
    command = ["export", str(base), "--target", "gguf-f16", "--adapter", str(tmp_path / "adapter"), "--dry-run"]
    assert run(command) == 0
    assert run([*command, "--adapter-mode", "separate"]) == AdapterError.exit_code
    assert "merge it instead" in capsys.readouterr().err


@pytest.mark.parametrize("indices", ["3", [3, -1, 5], [3, 30, 40], [3], {"other": [3]}])
def test_token_indices_that_do_not_fit_are_one_line(tiny: Tiny, tmp_path: Path, indices: Any) -> None:
    base, folder = tiny(), tmp_path / "adapter"
    trained(base, folder, trainable_token_indices=[3, 30, 39])
    change(folder / "adapter_config.json", trainable_token_indices=indices)
    with pytest.raises(AdapterError, match="tok") as error:
        merge_adapter(open_checkpoint(base), folder)
    assert "\n" not in str(error.value)


def test_an_mlx_adapter_and_a_file_are_said_to_be_that(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny()
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx/adapter_config.json").write_text(json.dumps({"lora_parameters": {"rank": 8}}))
    with pytest.raises(AdapterError, match="MLX"):
        merge_adapter(open_checkpoint(base), tmp_path / "mlx")
    with pytest.raises(AdapterError, match="got a file"):
        merge_adapter(open_checkpoint(base), base / "config.json")
    assert {EMBEDDING, HEAD} <= set(open_checkpoint(base).tensors.specs)
