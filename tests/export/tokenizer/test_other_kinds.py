"""SentencePiece, unigram and WordPiece vocabularies, each trained here: ids equal their own library's."""

from __future__ import annotations

import json

import pytest
import sentencepiece
from references.trained_tokenizers import (
    BYTE_TOKENS,
    as_merge_list,
    llama_style_model,
    train_sentencepiece,
    write_escaped,
)
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.sentencepiece_model import parse_sentencepiece
from edgepack.export.tokenizer.vocabulary import read_vocabulary


def check_ids(llama, text: str, expected: list[int]) -> None:
    assert llama.tokenize(text.encode(), add_bos=False) == expected


@pytest.mark.parametrize("dummy_prefix", [True, False], ids=["llama-2", "gemma"])
def test_sentencepiece_bpe_ids_equal_the_library(dummy_prefix, tmp_path, load_vocabulary, nasty):
    model = llama_style_model(nasty, add_dummy_prefix=dummy_prefix)
    (tmp_path / "tokenizer.model").write_bytes(model)
    llama = load_vocabulary(read_vocabulary(tmp_path, {"vocab_size": 640}))
    check_ids(llama, nasty, sentencepiece.SentencePieceProcessor(model_proto=model).encode(nasty))


@pytest.mark.parametrize("prefix", [True, False], ids=["phi-3", "gemma-3"])
def test_escaped_bpe_from_tokenizer_json_alone_equals_hugging_face(prefix, tmp_path, load_vocabulary, nasty):
    tokenizer = write_escaped(tmp_path, *as_merge_list(llama_style_model(nasty)), prefix=prefix)
    metadata = read_vocabulary(tmp_path, {"vocab_size": 640})
    assert metadata["tokenizer.ggml.model"].value == "llama"
    check_ids(load_vocabulary(metadata), nasty, tokenizer.encode(nasty, add_special_tokens=False).ids)


def test_runs_of_white_space_that_are_tokens_of_their_own_do_not_stand_in_the_way(tmp_path, load_vocabulary, nasty):
    runs = ["▁▁", "▁▁▁", "▁▁▁▁", "\n", "\n\n", "\n\n\n"]
    model = llama_style_model(nasty, user_defined_symbols=runs)
    vocab, merges = as_merge_list(model)
    scores = {piece.text: piece.score for piece in parse_sentencepiece(model).pieces}
    # as transformers sorts them: all runs have score 0, so that their merges come mixed
    merges.sort(key=lambda pair: (scores[pair[0] + pair[1]], len(pair[0]), len(pair[1])), reverse=True)
    tokenizer = write_escaped(tmp_path, vocab, merges, prefix=False)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in runs])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    metadata = read_vocabulary(tmp_path, {"vocab_size": 640})
    assert metadata["tokenizer.ggml.model"].value == "llama"
    check_ids(load_vocabulary(metadata), nasty, tokenizer.encode(nasty, add_special_tokens=False).ids)


def test_merges_that_scores_cannot_say_are_followed_as_a_list(tmp_path, load_vocabulary, nasty):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^▁]+|▁+"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<unk>", *BYTE_TOKENS], show_progress=False)
    tokenizer.train_from_iterator([line for line in nasty.split("\n") for _ in range(3)], trainer)
    content = json.loads(tokenizer.to_str())
    merges = [tuple(pair) for pair in content["model"]["merges"]]
    tokenizer = write_escaped(tmp_path, content["model"]["vocab"], merges, prefix=False)
    metadata = read_vocabulary(tmp_path, {})
    assert metadata["tokenizer.ggml.model"].value == "gemma4"
    check_ids(load_vocabulary(metadata), nasty, tokenizer.encode(nasty, add_special_tokens=False).ids)
    write_escaped(tmp_path, content["model"]["vocab"], merges, prefix=True)
    with pytest.raises(TokenizerError, match="cannot follow these merges"):
        read_vocabulary(tmp_path, {})


def test_unigram_model_file_ids_equal_sentencepiece(tmp_path, load_vocabulary, nasty):
    model = train_sentencepiece(nasty, model_type="unigram", vocab_size=230)
    (tmp_path / "spiece.model").write_bytes(model)
    metadata = read_vocabulary(tmp_path, {})
    assert metadata["tokenizer.ggml.model"].value == "t5"
    check_ids(load_vocabulary(metadata), nasty, sentencepiece.SentencePieceProcessor(model_proto=model).encode(nasty))


def test_unigram_with_byte_fallback_is_refused(tmp_path, nasty):
    model = train_sentencepiece(nasty, model_type="unigram", byte_fallback=True, vocab_size=480)
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(TokenizerError, match="byte fall-back"):
        read_vocabulary(tmp_path, {})


def test_unigram_tokenizer_json_ids_equal_hugging_face(tmp_path, load_vocabulary, nasty):
    parsed = parse_sentencepiece(train_sentencepiece(nasty, model_type="unigram", vocab_size=230))
    tokenizer = Tokenizer(models.Unigram([(piece.text, piece.score) for piece in parsed.pieces], 0, False))
    tokenizer.normalizer = normalizers.Precompiled(parsed.charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    llama = load_vocabulary(read_vocabulary(tmp_path, {}))
    check_ids(llama, nasty, tokenizer.encode(nasty, add_special_tokens=False).ids)


@pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
@pytest.mark.parametrize("source", ["tokenizer.json", "vocab.txt"])
def test_wordpiece_ids_equal_hugging_face(lowercase, source, tmp_path, load_vocabulary, nasty):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=420, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([nasty] * 3, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{text.strip('[]').lower()}_token": text for text in specials}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**names, "do_lower_case": lowercase}))
    if source == "tokenizer.json":
        tokenizer.save(str(tmp_path / source))
    else:
        by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        (tmp_path / source).write_text("".join(f"{text}\n" for text, _ in by_id), encoding="utf-8")
    llama = load_vocabulary(read_vocabulary(tmp_path, {}))
    lines = [*nasty.split("\n"), "unbelievably unseen words 𐍈 zzzz"]
    if lowercase:  # llama.cpp's decomposition leaves Hangul whole and drops vowel signs with the accents
        lines = [line for line in lines if "한국어" not in line]
    for line in [*lines, "\n".join(lines)]:
        assert llama.tokenize(line.encode(), add_bos=True, special=False) == tokenizer.encode(line).ids
