"""Exported vocabularies give Hugging Face's ids in llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepack.export.tokenizer.vocabulary import read_vocabulary

ROOT = Path(__file__).parents[3]
BOOKS = ROOT / "tests/data/books-llama-6m"
STORIES = ROOT.parent / "shared/models/stories260k"


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def _require(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.mark.parametrize("folder", [BOOKS, STORIES], ids=["books-llama-6m", "stories260k"])
@pytest.mark.parametrize("add_special", [False, True])
def test_ids_equal_hugging_face_on_nasty_text(folder, add_special, load_vocabulary, nasty):
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(_require(folder)).encode(nasty, add_special_tokens=add_special)
    llama = load_vocabulary(read_vocabulary(folder, _config(folder)))
    assert llama.tokenize(nasty.encode(), add_bos=add_special, special=False) == expected


def test_sentencepiece_ids_equal_the_library(load_vocabulary, nasty):
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(_require(STORIES) / "tokenizer.model"))
    llama = load_vocabulary(read_vocabulary(STORIES, _config(STORIES)))
    for line in nasty.splitlines():
        if line.isspace() or not line:
            continue
        assert llama.tokenize(line.encode(), add_bos=False) == processor.encode(line)
