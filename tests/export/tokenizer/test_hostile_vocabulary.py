"""Tokenizer files that lie are refused with one line, whatever they say."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.sentencepiece_model import parse_sentencepiece
from edgepack.export.tokenizer.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

BPE = {
    "added_tokens": [{"id": 4, "content": "<s>", "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ċ": 3}, "merges": ["a b"]},
}


def _write(folder: Path, tokenizer: object, **files: object) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def _with(path: str, value: object) -> dict:
    changed = copy.deepcopy(BPE)
    *parents, key = path.split(".")
    target = changed
    for parent in parents:
        target = target[parent]
    target[key] = value
    return changed


def test_the_untouched_vocabulary_is_read(tmp_path):
    metadata = read_vocabulary(_write(tmp_path, BPE), {"vocab_size": 6})
    assert metadata["tokenizer.ggml.tokens"].value == ["a", "b", "ab", "Ċ", "<s>", "[PAD5]"]
    assert metadata["tokenizer.ggml.token_type"].value == [1, 1, 1, 1, 3, 5]
    assert metadata["tokenizer.ggml.merges"].value == ["a b"]
    assert metadata["tokenizer.ggml.pre"].value == "gpt-2"


@pytest.mark.parametrize(
    ("tokenizer", "needle"),
    [
        ([], "expected an object"),
        (_with("model", 7), "expected dict"),
        (_with("model.type", "Word2Vec"), "Word2Vec"),
        (_with("model.vocab", {}), "empty"),
        (_with("model.vocab", ["a"]), "expected dict"),
        (_with("model.vocab", {"a": -1}), "token id"),
        (_with("model.vocab", {"a": 0.5}), "token id"),
        (_with("model.vocab", {"a": True}), "token id"),
        (_with("model.vocab", {"a": 1 << 40}), "token id"),
        (_with("model.vocab", {"a": 0, "b": 0}), "already"),
        (_with("model.vocab", {"\ud800": 0}), "UTF-8"),
        (_with("model.vocab", {"a" * 70_000: 0}), "at most"),
        (_with("model.merges", ["a b c"]), "two parts"),
        (_with("model.merges", ["a"]), "two parts"),
        (_with("model.merges", [["a", 1]]), "two parts"),
        (_with("model.merges", ["a z"]), "not in the vocabulary"),
        (_with("model.merges", ["b a"]), "not in the vocabulary"),
        (_with("model.end_of_word_suffix", "</w>"), "end_of_word_suffix"),
        (_with("added_tokens", {}), "expected list"),
        (_with("added_tokens", [1]), "expected an object"),
        (_with("added_tokens", [{"id": "4", "content": "x"}]), "token id"),
        (_with("added_tokens", [{"id": 4, "content": 5}]), "expected a string"),
        (_with("added_tokens", [{"id": 4, "content": "x"}, {"id": 4, "content": "y"}]), "already"),
        (_with("added_tokens", [{"id": 4, "content": "a"}]), "distinct"),
        (_with("model.vocab", {"a": 0, "b": 1, "ab": 6}), "below vocab_size 6, got 6"),
        (_with("pre_tokenizer", None), "no split at all"),
        (_with("pre_tokenizer", 7), "got '7'"),
        (_with("pre_tokenizer", {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}), "--pre NAME"),
        (_with("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BPE["pre_tokenizer"]] * 40}), "at most 32"),
        (_with("normalizer", {"type": "Lowercase"}), "Lowercase"),
    ],
)
def test_a_bad_tokenizer_json_is_one_line(tmp_path, tokenizer, needle):
    folder = _write(tmp_path, tokenizer)
    with pytest.raises(TokenizerError, match=needle) as error:
        read_vocabulary(folder, {"vocab_size": 6})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_tokenizer_json_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        read_vocabulary(tmp_path, {})


@pytest.mark.parametrize("size", [0, -1, "5", 2.5, 1 << 40, 3])
def test_a_vocab_size_that_cannot_be_is_refused(tmp_path, size):
    with pytest.raises(TokenizerError, match="vocab_size"):
        read_vocabulary(_write(tmp_path, BPE), {"vocab_size": size})


def test_an_added_token_without_a_row_in_the_embedding_is_left_out(tmp_path):
    folder = _write(tmp_path, _with("added_tokens", [{"id": 6, "content": "x"}]), added_tokens={"y": 7})
    assert read_vocabulary(folder, {"vocab_size": 6})["tokenizer.ggml.tokens"].value[4:] == ["[PAD4]", "[PAD5]"]


def test_a_folder_without_a_tokenizer_says_what_it_looked_for(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json, tokenizer\.model or vocab\.txt"):
        read_vocabulary(tmp_path, {})


def test_a_configured_id_beyond_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="eos_token_id below 6, got 6"):
        read_vocabulary(_write(tmp_path, BPE), {"vocab_size": 6, "eos_token_id": 6})


@pytest.mark.parametrize(
    ("buffer", "needle"),
    [
        (b"", "without pieces"),
        (b"\x0a", "varint"),
        (b"\x0a\x05\x0a\x01", "expected 5 bytes"),
        (b"\xff" * 11, "varint"),
        (b"\x00\x01", "field number"),
        (b"\x0b", "wire type"),
        (b"\x08\x01", "expected bytes"),
        (b"\x0a\x02\x08\x01", "expected bytes"),
        (b"\x0a\x03\x0a\x01\xff", "UTF-8"),
        (b"\x0a\x05\x15\x00\x00\xc0\x7f", "finite score"),
        (b"\x0a\x02\x18\x09", "piece type"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x03", "type word"),
    ],
)
def test_a_bad_sentencepiece_model_is_one_line(buffer, needle):
    with pytest.raises(TokenizerError, match=needle):
        parse_sentencepiece(buffer)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_protobuf_reader_fail_otherwise(buffer):
    try:
        model = parse_sentencepiece(buffer)
    except TokenizerError:
        return
    assert model.pieces
