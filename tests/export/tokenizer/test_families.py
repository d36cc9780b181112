"""Every pre-tokenizer structure that is known: a tokenizer is trained over it, ids equal Hugging Face's."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from pathlib import Path


GPT2_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA3 = GPT2_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r" ?[^\s\p{L}\p{N}]", r" ?[^\s\p{L}\p{M}\p{N}]")
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{GPT2_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{GPT2_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    "\r\n"
    r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["""
    "\r\n"
    r"""]*|\s*["""
    "\r\n"
    r"""]+|\s+(?!\S)|\s+"""
)

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def split(expression: str, behavior: str = "isolated", *, invert: bool = False):
    return pre_tokenizers.Split(Regex(expression), behavior, invert)


FAMILIES = {
    "gpt2": (GPT2_BYTES, False, "gpt-2"),
    "gpt_neox": (GPT2_BYTES, False, "olmo"),
    "starcoder2": ([pre_tokenizers.Digits(individual_digits=True), GPT2_BYTES], False, "starcoder"),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), GPT2_BYTES], False, "smollm"),
    "llama": ([split(LLAMA3), BYTES], True, "llama-bpe"),
    "smollm3": ([split(LLAMA3), BYTES], True, "llama-bpe"),
    "olmo2": ([split(LLAMA3), BYTES], False, "dbrx"),
    "phi3": ([split(CL100K, "removed", invert=True), BYTES], False, "dbrx"),
    "glm4": ([split(LLAMA3), BYTES], False, "chatglm-bpe"),
    "glm4_moe": ([split(LLAMA3), BYTES], True, "glm4"),
    "qwen2": ([split(QWEN2), BYTES], False, "qwen2"),
    "qwen3": ([split(QWEN2), BYTES], False, "qwen2"),
    "qwen3_5": ([split(QWEN35), BYTES], False, "qwen35"),
    "mistral": ([split(TEKKEN), BYTES], True, "tekken"),
    "gpt_oss": ([split(GPT4O), BYTES], False, "gpt-4o"),
    "deepseek_v3": (
        [split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK_V3), BYTES],
        False,
        "deepseek-v3",
    ),
    "deepseek_coder": (
        [
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split(r"[一-龥ࠀ-一가-퟿]+"),
            pre_tokenizers.Digits(individual_digits=True),
            BYTES,
        ],
        False,
        "deepseek-coder",
    ),
}


# llama.cpp's expressions for these take no combining mark into a word, so Hindi and Khmer are cut finer there
BLIND_TO_MARKS = {"tekken", "gpt-4o"}


def is_mark(character: str) -> bool:
    return unicodedata.category(character) in {"Mn", "Mc"}


def train(steps, ignore_merges: bool, text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if isinstance(steps, list) else steps
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, show_progress=False, special_tokens=["<|endoftext|>"]
    )
    tokenizer.train_from_iterator([text] * 3, trainer)
    return tokenizer


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
