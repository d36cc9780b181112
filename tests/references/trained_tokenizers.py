"""Small tokenizers of every structure that is known, trained over a text; what is asked of them is left to the tests."""

from __future__ import annotations

import io
import unicodedata
from typing import TYPE_CHECKING

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgepack.export.tokenizer.sentencepiece_model import parse_sentencepiece

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


BYTE_TOKENS = [f"<0x{value:02X}>" for value in range(256)]


def train_sentencepiece(text: str, **options) -> bytes:
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.split("\n") * 4),
        model_writer=stream,
        vocab_size=options.pop("vocab_size", 600),
        character_coverage=0.99,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return stream.getvalue()


def llama_style_model(text: str, **options) -> bytes:
    return train_sentencepiece(
        text,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        **options,
    )


def as_merge_list(model: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges as transformers derives them: every pair of pieces that makes a piece, best first."""
    pieces = parse_sentencepiece(model).pieces
    vocab = {piece.text: index for index, piece in enumerate(pieces)}
    merges = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        splits = [(piece.text[:at], piece.text[at:]) for at in range(1, len(piece.text))]
        merges += sorted(
            (pair for pair in splits if pair[0] in vocab and pair[1] in vocab),
            key=lambda pair: (vocab[pair[0]], vocab[pair[1]]),
        )
    return vocab, merges


def write_escaped(folder: Path, vocab, merges, *, prefix: bool) -> Tokenizer:
    """A tokenizer.json as Llama 2 and Phi-3 (with a prefix) or Gemma (without) publish it."""
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer
