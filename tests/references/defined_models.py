"""Tiny checkpoints of families that transformers does not have, each with what its definition gives for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from references.encoder_checkpoints import jina_2_checkpoint, nomic_2_checkpoint
from references.family_oracle import error_of, llama_logits, token_ids
from references.llama_embeddings import llama_token_embeddings
from references.relabelled_models import baichuan_2_13b, baichuan_7b, internlm_3
from references.rwkv_by_definition import CONFIG as RWKV
from references.rwkv_by_definition import random_tensors, reference_logits
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class DefinedModel:
    """One of them.

    Attributes:
        name: of the test.
        write: puts a checkpoint into a folder, with the tokenizer of another, and gives what is expected of it.
        embeds: that is every token's embedding; else its logits.
        tolerance: as a `TinyModel`'s.
    """

    name: str
    write: Callable[[Path, Path], Any]
    embeds: bool = False
    tolerance: float = 1e-4

    def error(self, path: Path, expected: Any) -> float:
        """The largest difference of what llama.cpp gives, in standard deviations of the expected."""
        got = llama_token_embeddings(path, token_ids()) if self.embeds else llama_logits(path, token_ids())
        assert got.shape == expected.shape
        assert self.embeds or (got.argmax(1) == expected.argmax(1)).all()
        return error_of(got, expected)


def _rwkv_7(folder: Path, tokenizer: Path) -> Any:
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in random_tensors().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(RWKV))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return reference_logits(random_tensors(), token_ids())


DEFINED = (
    DefinedModel("baichuan-7b", baichuan_7b),
    DefinedModel("baichuan-2-13b", baichuan_2_13b),
    DefinedModel("internlm-3", partial(internlm_3, bias=True)),
    DefinedModel("internlm-3-without-bias", partial(internlm_3, bias=False)),
    DefinedModel("rwkv-7", _rwkv_7),
    DefinedModel("jina-2", jina_2_checkpoint, embeds=True, tolerance=6e-3),
    DefinedModel("nomic-2", nomic_2_checkpoint, embeds=True, tolerance=6e-3),
)


def defined(name: str) -> DefinedModel:
    """The one called so."""
    return next(each for each in DEFINED if each.name == name)
