"""Byte-level BPE from `tokenizer.json`: vocabulary, merges and the pre-tokenizer's name.

Special tokens and templates are left to `special_tokens` and `chat_templates`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.files import TokenizerFiles, kind_of, member
from edgepack.export.tokenizer.merging import Merges, read_merges, split_token
from edgepack.export.tokenizer.pretokenizer import choose_pre, flatten
from edgepack.export.tokenizer.tokens import (
    AddedToken,
    Token,
    TokenType,
    check_id,
    check_text,
    fill_table,
    table_metadata,
    vocabulary_size,
)
from edgepack.gguf.types import Value, ValueType, array, string

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_byte_level_bpe(files: TokenizerFiles, pre: str | None) -> dict[str, Value]:
    """The keys of a `gpt2` vocabulary.

    Args:
        files: with a `tokenizer.json` whose model is BPE.
        pre: the user's decision on `tokenizer.ggml.pre`; None recognises the structure.

    Raises:
        TokenizerError: an unknown structure, or a vocabulary that contradicts itself.
    """
    model = member(files.tokenizer, "model", dict, "tokenizer.json")
    refuse_options(model)
    vocab = read_vocab(model)
    merges = read_merges(model, vocab)
    name = pre or _recognise(files, model, vocab, merges)
    tokens = merge_added({i: Token(text, TokenType.NORMAL) for text, i in vocab.items()}, files.added)
    table = fill_table(tokens, vocabulary_size(files.config, max(tokens)))
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(name),
        **table_metadata(table, scores=False),
        "tokenizer.ggml.merges": array(ValueType.STRING, [f"{left} {right}" for left, right in merges]),
    }


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokens are spelt in GPT-2's byte alphabet: a ByteLevel step, or nothing that escapes spaces."""
    steps = flatten(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normalizers = flatten(tokenizer.get("normalizer"), "normalizers")
    kinds = {kind_of(step) for step in steps}
    escapes = kinds & {"Metaspace"} or {kind_of(step) for step in normalizers} & {"Replace", "Prepend"}
    return "ByteLevel" in kinds or not escapes


def refuse_options(model: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp's BPE does not do: affixes of sub-words and dropout are lost there."""
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(f"tokenizer.json: expected model.{key} to be empty, got {model[key]!r}")


def read_vocab(model: Mapping[str, Any]) -> dict[str, int]:
    """`model.vocab`, checked: token text → id, ids distinct.

    Raises:
        TokenizerError: empty, or a text or an id that is not one, or an id twice.
    """
    vocab: dict[str, int] = member(model, "vocab", dict, "tokenizer.json: model")
    if not vocab:
        raise TokenizerError("tokenizer.json: expected a vocabulary, got an empty one")
    owner: dict[int, str] = {}
    for text, index in vocab.items():
        where = f"tokenizer.json: model.vocab[{text[:80]!r}]"
        check_text(text, where)
        if check_id(index, where) in owner:
            raise TokenizerError(f"{where}: id {index} is {owner[index][:80]!r} already")
        owner[index] = text
    return vocab


def merge_added(tokens: Mapping[int, Token], added: Mapping[int, AddedToken], score: float = 0.0) -> dict[int, Token]:
    """`tokens` with the added ones laid over; neither is modified."""
    return {**tokens, **{i: token.as_token(score) for i, token in added.items()}}


def _recognise(files: TokenizerFiles, model: Mapping[str, Any], vocab: Mapping[str, int], merges: Merges) -> str:
    ignore_merges = model.get("ignore_merges") is True
    family = str(files.config.get("model_type", ""))
    chosen = choose_pre(files.tokenizer, ignore_merges=ignore_merges, family=family)
    if chosen.ignore_merges != ignore_merges:
        added = {token.text for token in files.added.values()}
        split = split_token([text for text in vocab if text not in added], merges)
        if split is not None:
            raise TokenizerError(
                f"tokenizer.json: ignore_merges is {str(ignore_merges).lower()}, but llama.cpp's '{chosen.name}' "
                f"has it the other way and token {split!r} is encoded differently; --pre NAME decides"
            )
    return chosen.name
