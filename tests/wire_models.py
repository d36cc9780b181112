"""A small random Llama with the bundled tokenizer, and text to calibrate it on, for tests of the wire target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

BOOKS = Path(__file__).resolve().parent / "data" / "books-llama-6m"


def write_small_llama(folder: Path, **changes: object) -> Path:
    """A checkpoint of two layers whose rows are whole blocks of 32 (and of 256 with `hidden_size=256`)."""
    folder.mkdir()
    for path in BOOKS.iterdir():
        if "token" in path.name or path.name == "generation_config.json":
            shutil.copy(path, folder)
    config = json.loads((BOOKS / "config.json").read_text()) | {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "dtype": "float32",
        **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 2.0)
        else:
            parameter.data.mul_(4.0)
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def text_beside(model: Path, words: int = 9000) -> Path:
    """A file of varied text beside a model."""
    path = model.parent / "text.txt"
    path.write_text(varied_text(words))
    return path


def varied_text(words: int = 9000) -> str:
    """Text of many different words, the same every time."""
    generator = torch.Generator().manual_seed(7)
    letters = "etaoinshrdlucmfwygpb"
    lengths = torch.randint(2, 9, (words,), generator=generator).tolist()
    return " ".join(
        "".join(letters[i] for i in torch.randint(len(letters), (n,), generator=generator).tolist()) for n in lengths
    )
