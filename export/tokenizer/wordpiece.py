"""WordPiece vocabularies (BERT), from tokenizer.json or vocab.txt, for llama.cpp's `bert` tokenizer.

llama.cpp marks the beginning of a word with ▁ where BERT marks its continuation with ##. One difference remains:
BERT gives up on words of more than 100 characters, llama.cpp does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.bpe import read_vocab
from edgepack.export.tokenizer.classes import default_names
from edgepack.export.tokenizer.files import MAX_JSON_BYTES, TokenizerFiles, kind_of, member
from edgepack.export.tokenizer.pretokenizer import brief, flatten
from edgepack.export.tokenizer.special_tokens import token_text
from edgepack.export.tokenizer.tokens import Token, TokenType, check_text, fill_table, table_metadata, vocabulary_size
from edgepack.files.source import read_small
from edgepack.gguf.types import Value, boolean, string

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VOCAB_FILE = "vocab.txt"
_CONTINUATION = "##"
_ROLES = ("unk", "sep", "pad", "cls", "mask")
_ENDS = frozenset({"[CLS]", "[SEP]"})  # that llama.cpp puts around every text
_DEFAULT_SPECIALS = frozenset({"[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"})


def read_wordpiece_json(files: TokenizerFiles) -> dict[str, Value]:
    """The keys of a vocabulary whose `tokenizer.json` is WordPiece.

    Raises:
        TokenizerError: normalisation or splitting other than BERT's, or a vocabulary that contradicts itself.
    """
    model = member(files.tokenizer, "model", dict, "tokenizer.json")
    if model.get("continuing_subword_prefix", _CONTINUATION) != _CONTINUATION:
        raise TokenizerError(f"tokenizer.json: expected continuing_subword_prefix {_CONTINUATION!r}")
    normalizers = flatten(files.tokenizer.get("normalizer"), "normalizers")
    pretokenizers = flatten(files.tokenizer.get("pre_tokenizer"), "pretokenizers")
    _expect_kinds("normalizer", normalizers, "BertNormalizer")
    _expect_kinds("pre_tokenizer", pretokenizers, "BertPreTokenizer")
    options = normalizers[0]
    if options.get("clean_text", True) is not True or options.get("handle_chinese_chars", True) is not True:
        raise TokenizerError(f"tokenizer.json: expected text to be cleaned as BERT does, got {brief(options)}")
    specials = {token.text for token in files.added.values() if token.special} | _named_specials(files) | _ENDS
    lowercase = options.get("lowercase", True) is True
    return _metadata(files, read_vocab(model), specials, lowercase, options.get("strip_accents"))


def read_wordpiece_text(files: TokenizerFiles) -> dict[str, Value]:
    """The keys of a vocabulary from `vocab.txt`, a token a line; errors as `read_wordpiece_json`."""
    vocab = _read_lines(files.folder / VOCAB_FILE)
    specials = {text for text in _named_specials(files) | _DEFAULT_SPECIALS if text in vocab}
    lowercase = files.settings.get("do_lower_case", True) is True
    return _metadata(files, vocab, specials, lowercase, files.settings.get("strip_accents"))


def _named_specials(files: TokenizerFiles) -> set[str]:
    """Texts that the settings or transformers' class name as special: they are found in the text as they stand."""
    settings = {**default_names(files.class_name), **files.settings}
    return {text for role in _ROLES if (text := token_text(settings.get(f"{role}_token"))) is not None}


def _metadata(
    files: TokenizerFiles, vocab: Mapping[str, int], specials: set[Any], lowercase: bool, strip: Any
) -> dict[str, Value]:
    tokens = {index: _phantom_space(text, text in specials) for text, index in vocab.items()}
    tokens |= {i: token.as_token() for i, token in files.added.items()}
    table = fill_table(tokens, vocabulary_size(files.config, max(tokens)))
    return {
        "tokenizer.ggml.model": string("bert"),
        "tokenizer.ggml.pre": string("default"),
        **table_metadata(table, scores=False),
        "tokenizer.ggml.normalizer.lowercase": boolean(lowercase),
        "tokenizer.ggml.normalizer.strip_accents": boolean(lowercase if strip is None else strip is True),
    }


def _phantom_space(text: str, is_special: bool) -> Token:
    if is_special:
        return Token(text, TokenType.CONTROL)
    if text.startswith(_CONTINUATION) and text != _CONTINUATION:
        return Token(text.removeprefix(_CONTINUATION), TokenType.NORMAL)
    return Token("\u2581" + text, TokenType.NORMAL)


def _expect_kinds(where: str, steps: list[Mapping[str, Any]], kind: str) -> None:
    if [kind_of(step) for step in steps] != [kind]:
        shown = " then ".join(map(brief, steps)) or "none"
        raise TokenizerError(f"tokenizer.json: expected {where} {kind}, got {shown}")


def _read_lines(path: Path) -> dict[str, int]:
    raw = read_small(path, TokenizerError, MAX_JSON_BYTES)
    try:
        lines = raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path.name}: expected UTF-8, got {error}") from None
    vocab: dict[str, int] = {}
    for index, line in enumerate(lines):
        text = check_text(line.rstrip("\r"), f"{path.name}: line {index + 1}")
        if text in vocab:
            raise TokenizerError(f"{path.name}: line {index + 1}: {text[:80]!r} is at line {vocab[text] + 1} already")
        vocab[text] = index
    return vocab
