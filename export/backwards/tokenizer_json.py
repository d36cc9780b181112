"""tokenizer.json from the `tokenizer.*` keys of a GGUF, a function for each kind of vocabulary.

What is not known to give the ids that llama.cpp gives is refused by name. Settings, special tokens and templates are
`export.backwards.vocabulary`'s.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError
from edgepack.export.tokenizer.split_expressions import KNOWN_STRUCTURES
from edgepack.export.tokenizer.tokens import TokenType
from edgepack.export.tokenizer.whitespace_signs import SIGN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from edgepack.gguf.types import Value

    Json = dict[str, Any]

# Names under which llama.cpp splits as under another (llama_vocab::impl::load in llama-vocab.cpp of 0.3.36).
_SAME = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "falcon-h1": "llama-bpe",
    "pixtral": "llama-bpe",
    "midm-2.0": "llama-bpe",
    "lfm2": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}
_TEXT = {"Sequence": {"id": "A", "type_id": 0}}
_BEGINS = frozenset({"llama-bpe", "tekken"})  # where llama.cpp puts bos before a text without being told


@dataclass(frozen=True)
class GGUFVocabulary:
    """The `tokenizer.*` keys, checked.

    Attributes:
        metadata: of the GGUF.
        tokens: id → text.
        types: id → type.

    Raises:
        TokenizerError: no tokens, or as many types as there are not tokens.
    """

    metadata: Mapping[str, Value]
    tokens: Sequence[str]
    types: Sequence[int]

    @classmethod
    def of(cls, metadata: Mapping[str, Value]) -> GGUFVocabulary:
        """The vocabulary of a GGUF."""
        tokens = metadata.get("tokenizer.ggml.tokens")
        if tokens is None or not isinstance(tokens.value, list) or not all(isinstance(t, str) for t in tokens.value):
            raise TokenizerError("tokenizer.ggml.tokens: expected a list of texts")
        kinds = metadata.get("tokenizer.ggml.token_type")
        types = [int(TokenType.NORMAL)] * len(tokens.value) if kinds is None else kinds.value
        if len(types) != len(tokens.value):
            raise TokenizerError(f"tokenizer.ggml.token_type: expected {len(tokens.value)} types, got {len(types)}")
        return cls(metadata, tokens.value, types)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `tokenizer.ggml.{key}`."""
        found = self.metadata.get(f"tokenizer.ggml.{key}")
        return default if found is None else found.value

    @property
    def kind(self) -> str:
        """`tokenizer.ggml.model`."""
        return str(self.get("model", ""))

    @property
    def pre(self) -> str:
        """The pre-tokenizer's name; another that means the same where there is one."""
        name = str(self.get("pre", "default"))
        return _SAME.get(name, name)

    def id_of(self, role: str) -> int | None:
        """The id of a special token, such as `bos`, that lies in the vocabulary."""
        index = self.get(f"{role}_token_id")
        return index if type(index) is int and 0 <= index < len(self.tokens) else None

    def adds(self, role: str) -> bool:
        """Whether `bos` or `eos` stands around every text, by llama.cpp's own rule where no key says it."""
        usual = role == "bos" and (self.kind == "llama" or self.pre in _BEGINS)
        return bool(self.get(f"add_{role}_token", self.kind == "bert" or usual)) and self.id_of(role) is not None

    def of_type(self, *types: TokenType) -> Iterator[tuple[int, str]]:
        """Ids and texts of the tokens of some types."""
        return ((i, text) for i, text in enumerate(self.tokens) if self.types[i] in types)


def tokenizer_json(vocabulary: GGUFVocabulary) -> Json:
    """The content of tokenizer.json.

    Raises:
        TokenizerError: a kind that tokenizer.json does not have, or a pre-tokenizer whose expressions are not known.
    """
    make = _KINDS.get(vocabulary.kind)
    if make is None:
        raise TokenizerError(f"tokenizer.ggml.model is {vocabulary.kind!r}: expected {', '.join(sorted(_KINDS))}")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(vocabulary, i, text) for i, text in _found_first(vocabulary)],
        **make(vocabulary),
        "post_processor": _post_processor(vocabulary),
    }


def _found_first(vocabulary: GGUFVocabulary) -> Iterator[tuple[int, str]]:
    """Tokens that are looked for in the text before it is split."""
    return vocabulary.of_type(TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


def _added(vocabulary: GGUFVocabulary, index: int, text: str) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, **flags, "special": vocabulary.types[index] != TokenType.USER_DEFINED}


def _vocab(vocabulary: GGUFVocabulary) -> dict[str, int]:
    """Text → id, without the rows of the embedding that have no token."""
    return {text: i for i, text in enumerate(vocabulary.tokens) if vocabulary.types[i] != TokenType.UNUSED}


def _bpe(vocabulary: GGUFVocabulary, merges: Sequence[str] | Sequence[list[str]], **changes: Any) -> Json:
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    }  # fmt: skip
    return {**model, **changes, "vocab": _vocab(vocabulary), "merges": merges}


def _merge_list(vocabulary: GGUFVocabulary) -> list[list[str]]:
    merges = vocabulary.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError("tokenizer.ggml.merges: expected a list, got none")
    return [_halves(merge) for merge in merges]


def _halves(merge: str) -> list[str]:
    """The two parts of a merge; a space within the first is kept, as llama.cpp keeps it."""
    at = merge.find(" ", 1)
    if at < 0:
        raise TokenizerError(f"tokenizer.ggml.merges: expected two parts, got {merge[:80]!r}")
    return [merge[:at], merge[at + 1 :]]


def _byte_level(vocabulary: GGUFVocabulary) -> Json:
    steps, name = next(
        ((steps, each) for steps, names in KNOWN_STRUCTURES.items() for each in names if each.name == vocabulary.pre),
        (None, None),
    )
    if steps is None or name is None:
        raise TokenizerError(f"tokenizer.ggml.pre is {vocabulary.pre!r}: how it splits texts is not known to edgepack")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    splits = [{"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False} for step in steps]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "decoder": {**level, "use_regex": True},
        "model": _bpe(vocabulary, _merge_list(vocabulary), ignore_merges=name.ignore_merges),
    }


def _escaped(vocabulary: GGUFVocabulary, merges: list[list[str]], *, prefix: bool) -> Json:
    """BPE over whole text with ▁ for spaces and byte fall-back."""
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SIGN}
    steps = [{"type": "Prepend", "prepend": SIGN}, escape] if prefix else [escape]
    back = [
        {"type": "Replace", "pattern": {"String": SIGN}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]  # fmt: skip
    unknown = vocabulary.id_of("unknown")
    text = None if unknown is None else vocabulary.tokens[unknown]
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": _bpe(vocabulary, merges, unk_token=text, fuse_unk=True, byte_fallback=True),
    }


def _by_score(vocabulary: GGUFVocabulary) -> Json:
    scores = vocabulary.get("scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise TokenizerError(f"tokenizer.ggml.scores: expected {len(vocabulary.tokens)} scores")
    merges = _merges_of_scores(vocabulary, scores)
    return _escaped(vocabulary, merges, prefix=bool(vocabulary.get("add_space_prefix", True)))


def _merges_of_scores(vocabulary: GGUFVocabulary, scores: Sequence[float]) -> list[list[str]]:
    """Every two tokens whose union is one, in the order of its score, as transformers makes them of SentencePiece."""
    ids = {text: i for i, text in vocabulary.of_type(TokenType.NORMAL)}
    found: list[tuple[float, int, int, str, str]] = []
    for text, index in ids.items():
        halves = ((text[:at], text[at:]) for at in range(1, len(text)))
        found += [(-scores[index], index, ids[a], a, b) for a, b in halves if a in ids and b in ids]
    return [[left, right] for *_order, left, right in sorted(found, key=lambda each: each[:3])]


def _by_list(vocabulary: GGUFVocabulary) -> Json:
    """Gemma 4's: whole text as the merges say, no ▁ before it."""
    return _escaped(vocabulary, _merge_list(vocabulary), prefix=False)


def _unigram(vocabulary: GGUFVocabulary) -> Json:
    scores, unknown = vocabulary.get("scores"), vocabulary.id_of("unknown")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens) or unknown is None:
        raise TokenizerError("tokenizer.ggml.scores: expected a score for each token, and an unknown token")
    last = max(i for i, kind in enumerate(vocabulary.types) if kind != TokenType.UNUSED)
    pieces = [[text, scores[i]] for i, text in enumerate(vocabulary.tokens[: last + 1])]
    scheme = "always" if vocabulary.get("add_space_prefix", True) else "never"
    space = {"type": "Metaspace", "replacement": SIGN, "prepend_scheme": scheme, "split": True}
    words = [{"type": "WhitespaceSplit"}] if vocabulary.get("remove_extra_whitespaces", False) else []
    rules = vocabulary.get("precompiled_charsmap")
    compiled = None if rules is None else b64encode(bytes(each % 256 for each in rules)).decode()
    return {
        "normalizer": None if compiled is None else {"type": "Precompiled", "precompiled_charsmap": compiled},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*words, space]},
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": False},
    }


def _wordpiece(vocabulary: GGUFVocabulary) -> Json:
    def spelling(index: int, text: str) -> str:
        if vocabulary.types[index] == TokenType.CONTROL:
            return text
        return text.removeprefix(SIGN) if text.startswith(SIGN) else f"##{text}"

    unknown = vocabulary.id_of("unknown")
    options = {
        "lowercase": bool(vocabulary.get("normalizer.lowercase", True)),
        "strip_accents": bool(vocabulary.get("normalizer.strip_accents", True)),
    }
    vocab = {spelling(i, text): i for text, i in _vocab(vocabulary).items()}
    return {
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, **options},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "unk_token": "[UNK]" if unknown is None else vocabulary.tokens[unknown], "vocab": vocab,
        },
    }  # fmt: skip


def _post_processor(vocabulary: GGUFVocabulary) -> Json | None:
    """What stands around every text; BERT's last token is its separator."""
    last = "seperator" if vocabulary.kind == "bert" else "eos"  # llama.cpp's own spelling
    ends = [vocabulary.id_of("bos") if vocabulary.adds("bos") else None]
    ends.append(vocabulary.id_of(last) if vocabulary.kind == "bert" or vocabulary.adds("eos") else None)
    if ends == [None, None]:
        return None
    before, after = (
        [{"SpecialToken": {"id": vocabulary.tokens[i], "type_id": 0}}] if i is not None else [] for i in ends
    )
    second = {"Sequence": {"id": "B", "type_id": 0}}
    special = {
        vocabulary.tokens[i]: {"id": vocabulary.tokens[i], "ids": [i], "tokens": [vocabulary.tokens[i]]}
        for i in ends
        if i is not None
    }
    return {
        "type": "TemplateProcessing",
        "single": [*before, _TEXT, *after],
        "pair": [*before, _TEXT, *after, second, *after],
        "special_tokens": special,
    }


def _special(text: str) -> Json:
    return {"SpecialToken": {"id": text, "type_id": 0}}


_KINDS: Mapping[str, Callable[[GGUFVocabulary], Json]] = {
    "gpt2": _byte_level,
    "llama": _by_score,
    "gemma4": _by_list,
    "t5": _unigram,
    "bert": _wordpiece,
}
