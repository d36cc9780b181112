"""A GGUF's tokenizer as files: transformers gives the ids that llama.cpp gives of the GGUF."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from references.trained_tokenizers import (
    BLIND_TO_MARKS,
    FAMILIES,
    as_merge_list,
    is_mark,
    llama_style_model,
    train,
    train_sentencepiece,
    write_escaped,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from edgepack.errors import TokenizerError
from edgepack.export.backwards.tokenizer_json import _SAME, GGUFVocabulary, tokenizer_json
from edgepack.export.backwards.vocabulary import write_tokenizer
from edgepack.export.tokenizer.vocabulary import read_vocabulary
from edgepack.gguf.types import Value, ValueType, array, boolean, f32, string, u32

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def read_back(metadata: Mapping[str, Value], folder: Path):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(metadata, CONFIG, folder)
    return AutoTokenizer.from_pretrained(folder)


def check(metadata, text: str, tmp_path: Path, load_vocabulary) -> None:
    tokenizer = read_back(metadata, tmp_path / "back")
    expected = load_vocabulary(metadata).tokenize(text.encode(), add_bos=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_byte_level_bpe_are_those_of_llama_cpp(family, tmp_path, load_vocabulary, nasty):
    steps, ignore_merges, pre = FAMILIES[family]
    train(steps, ignore_merges, nasty).save(str(tmp_path / "tokenizer.json"))
    metadata = read_vocabulary(tmp_path, {"model_type": family, "vocab_size": 1000})
    if pre in BLIND_TO_MARKS:
        nasty = "\n".join(line for line in nasty.split("\n") if not any(map(is_mark, line)))
    check(metadata, nasty, tmp_path, load_vocabulary)


@pytest.mark.parametrize("alias", _SAME)
def test_another_name_of_a_pre_tokenizer_splits_as_the_known_one(alias, tmp_path, load_vocabulary, nasty):
    family = {"llama-bpe": "llama", "qwen2": "qwen2"}[_SAME[alias]]
    steps, ignore_merges, _pre = FAMILIES[family]
    train(steps, ignore_merges, nasty).save(str(tmp_path / "tokenizer.json"))
    check(read_vocabulary(tmp_path, {"vocab_size": 1000}, pre=alias), nasty, tmp_path, load_vocabulary)


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_of_scores_are_those_of_llama_cpp(prefix, tmp_path, load_vocabulary, nasty):
    (tmp_path / "tokenizer.model").write_bytes(llama_style_model(nasty, add_dummy_prefix=prefix))
    check(read_vocabulary(tmp_path, {"vocab_size": 640}), nasty, tmp_path, load_vocabulary)


def test_ids_of_a_merge_list_are_those_of_llama_cpp(tmp_path, load_vocabulary, nasty):
    vocab, merges = as_merge_list(llama_style_model(nasty))
    write_escaped(tmp_path, vocab, merges, prefix=False)
    metadata = read_vocabulary(tmp_path, {}) | {
        "tokenizer.ggml.model": string("gemma4"),
        "tokenizer.ggml.pre": string("gemma4"),
        "tokenizer.ggml.merges": array(ValueType.STRING, [f"{a} {b}" for a, b in merges]),
    }
    tokenizer = tokenizer_json(GGUFVocabulary.of(metadata))
    assert tokenizer["model"]["merges"] == [list(pair) for pair in merges]
    assert tokenizer["model"]["vocab"] == vocab


def test_ids_of_unigram_are_those_of_llama_cpp(tmp_path, load_vocabulary, nasty):
    (tmp_path / "spiece.model").write_bytes(train_sentencepiece(nasty, model_type="unigram", vocab_size=230))
    check(read_vocabulary(tmp_path, {}), nasty, tmp_path, load_vocabulary)


def test_special_tokens_templates_and_ends_come_back(books, tmp_path):
    metadata = read_vocabulary(books, {"vocab_size": 4096}) | {
        "tokenizer.chat_template": string("{{ messages }}"),
        "tokenizer.chat_template.tool_use": string("{{ tools }}"),
        "tokenizer.ggml.eot_token_id": u32(7),
        "general.sampling.temp": f32(0.5),
    }
    tokenizer = read_back(metadata, tmp_path / "back")
    original = AutoTokenizer.from_pretrained(books)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (original.bos_token_id, original.eos_token_id)
    assert tokenizer("It was")["input_ids"] == original("It was")["input_ids"]
    assert tokenizer.chat_template == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    generation = json.loads((tmp_path / "back/generation_config.json").read_text())
    assert generation["eos_token_id"] == [original.eos_token_id, 7]
    assert generation["temperature"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": string("rwkv")}, "tokenizer.ggml.model is 'rwkv'"),
        ({"tokenizer.ggml.pre": string("viking")}, "tokenizer.ggml.pre is 'viking'"),
        ({"tokenizer.ggml.merges": string("a b")}, "tokenizer.ggml.merges: expected a list"),
        ({"tokenizer.ggml.merges": array(ValueType.STRING, ["ab"])}, "expected two parts, got 'ab'"),
        ({"tokenizer.ggml.token_type": array(ValueType.INT32, [1])}, "expected 4096 types, got 1"),
        ({"tokenizer.ggml.tokens": string("a")}, "expected a list of texts"),
        ({"tokenizer.ggml.model": string("llama")}, "tokenizer.ggml.scores: expected 4096 scores"),
        ({"tokenizer.ggml.model": string("t5")}, "expected a score for each token"),
    ],
)
def test_what_cannot_be_read_back_is_refused_by_its_key(changes, message, books, tmp_path):
    metadata = read_vocabulary(books, {"vocab_size": 4096}) | changes
    with pytest.raises(TokenizerError, match="tokenizer") as refusal:
        read_back(metadata, tmp_path / "back")
    assert message in str(refusal.value)


def test_bos_is_added_where_llama_cpp_adds_it_without_a_key(books):
    metadata = read_vocabulary(books, {"vocab_size": 4096})
    silent = {key: value for key, value in metadata.items() if ".add_" not in key}
    assert GGUFVocabulary.of(silent).adds("bos")
    assert not GGUFVocabulary.of(silent | {"tokenizer.ggml.add_bos_token": boolean(False)}).adds("bos")
    assert not GGUFVocabulary.of(silent | {"tokenizer.ggml.pre": string("qwen2")}).adds("bos")


@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_of_wordpiece_are_those_of_llama_cpp(lowercase, tmp_path, load_vocabulary):
    text = "It was a dark night, and nothing stirred. Unbelievably, (nobody) knew 1234 words!"
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([text] * 3, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{each.strip('[]').lower()}_token": each for each in specials}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    metadata = read_vocabulary(tmp_path, {})
    back = read_back(metadata, tmp_path / "back")
    assert back(text)["input_ids"] == load_vocabulary(metadata).tokenize(text.encode())
