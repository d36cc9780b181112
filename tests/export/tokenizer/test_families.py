"""Every pre-tokenizer structure that is known: a tokenizer is trained over it, ids equal Hugging Face's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from references.trained_tokenizers import BLIND_TO_MARKS, BYTES, FAMILIES, GPT2_BYTES, QWEN2, is_mark, split, train

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_hugging_face_for_the_family(family, tmp_path: Path, load_vocabulary, nasty):
    steps, ignore_merges, pre = FAMILIES[family]
    tokenizer = train(steps, ignore_merges, nasty)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    metadata = read_vocabulary(tmp_path, {"model_type": family, "vocab_size": 1000})
    assert metadata["tokenizer.ggml.pre"].value == pre
    if pre in BLIND_TO_MARKS:
        nasty = "\n".join(line for line in nasty.split("\n") if not any(map(is_mark, line)))
    expected = tokenizer.encode(nasty, add_special_tokens=False).ids
    assert load_vocabulary(metadata).tokenize(nasty.encode(), add_bos=False) == expected


def test_an_unknown_expression_is_shown_with_the_nearest_known(tmp_path, nasty):
    train([split(QWEN2.replace(r"\p{N}", r"\p{N}{1,2}")), BYTES], False, nasty).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError) as error:
        read_vocabulary(tmp_path, {})
    message = str(error.value)
    assert r"\p{N}{1,2}" in message
    assert "nearest is 'llama-bpe'" in message or "nearest is 'qwen2'" in message
    assert "--pre NAME" in message
    assert read_vocabulary(tmp_path, {}, pre="qwen2")["tokenizer.ggml.pre"].value == "qwen2"


def test_ignore_merges_that_matters_and_cannot_be_said_is_refused(tmp_path, nasty):
    train(GPT2_BYTES, True, nasty).save(str(tmp_path / "tokenizer.json"))
    assert read_vocabulary(tmp_path, {})["tokenizer.ggml.pre"].value == "gpt-2"
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["Ġsquirrel"] = len(content["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="Ġsquirrel"):
        read_vocabulary(tmp_path, {})
