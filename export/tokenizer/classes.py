"""Which tokenizer class of transformers reads a folder, and which steps of `tokenizer.json` that class replaces.

Since version 5 a class of its own takes vocabulary, merges and post-processor from `tokenizer.json` and builds
normaliser and pre-tokenizer itself; only `TokenizersBackend` reads the file whole. Rules:
`AutoTokenizer.from_pretrained` and `models/*/tokenization_*.py` of transformers 5.23. How steps are recognised is left
to the readers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Json = Mapping[str, Any]

BACKEND = "TokenizersBackend"
"""The class that reads `tokenizer.json` as it is."""

# model_type → class (TOKENIZER_MAPPING_NAMES), for the types whose class is one of `CLASSES`; None: the backend.
_BY_TYPE: Mapping[str, str | None] = {
    **dict.fromkeys(("bert", "distilbert", "electra", "ernie", "nomic_bert"), "BertTokenizer"),
    **dict.fromkeys(("cohere", "cohere2", "aya_vision"), "CohereTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "recurrent_gemma",
                     "shieldgemma2", "t5gemma"), "GemmaTokenizer"),
    **dict.fromkeys(("codegen", "gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2", "jais2"), "GPT2Tokenizer"),
    **dict.fromkeys(("falcon_mamba", "gpt_neox", "mamba", "mamba2", "mpt", "olmo", "olmoe", "rwkv"),
                    "GPTNeoXTokenizer"),
    **dict.fromkeys(("idefics", "idefics2"), "LlamaTokenizer"),
    "code_llama": "CodeLlamaTokenizer",
    "mpnet": "MPNetTokenizer",
    **dict.fromkeys(("qwen2", "qwen2_5_vl", "qwen2_audio", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_moe", "qwen3_next",
                     "qwen3_vl", "qwen3_vl_moe", "internvl"), "Qwen2Tokenizer"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text"), "Qwen3_5Tokenizer"),
    **dict.fromkeys(("bart", "roberta"), "RobertaTokenizer"),
    **dict.fromkeys(("mt5", "t5", "switch_transformers"), "T5Tokenizer"),
    **dict.fromkeys(("xlm-roberta", "gte", "jina_embeddings_v3"), "XLMRobertaTokenizer"),
    **dict.fromkeys(("bigbird_pegasus", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm4v", "gpt_bigcode", "granite",
                     "granitemoe", "granitemoehybrid", "granitemoeshared", "kimi_linear", "mimo_v2_flash", "ministral",
                     "ministral3", "mistral", "mistral3", "mixtral", "olmo2", "olmo3", "persimmon", "pixtral",
                     "stablelm", "umt5", "xlm-roberta-xl"), None),
}  # fmt: skip
# Types whose published tokenizer_class is wrong (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS): their own class decides.
_OWN_CLASS_DECIDES = frozenset(
    """arctic ernie4_5 ernie4_5_moe hyperclovax internlm2 internlm3 iquestcoder jamba llava llava_next minicpm3 minicpmv
    minimax_m2 modernbert modernbert-decoder molmo nemotron phi3 phi3_v phimoe qwen2 qwen3_5 qwen3_5_moe
    qwen3_5_moe_text smolvlm vipllava""".split()  # noqa: SIM905 -- shorter than a list
)
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NFC = {"type": "NFC"}


@dataclass(frozen=True)
class TokenizerClass:
    """One class of transformers.

    Attributes:
        steps: (tokenizer_config.json, tokenizer.json) → members of `tokenizer.json` that the class builds itself.
        model: of what kind its model is.
        names: special tokens that it has without being told.
    """

    steps: Callable[[Json, Json], dict[str, Any]]
    model: str
    names: Json = field(default_factory=dict)


def class_name(settings: Json, config: Json, tokenizer: Json) -> str | None:
    """The class that `AutoTokenizer` takes, None where nothing names one.

    Args:
        settings: parsed tokenizer_config.json.
        config: the model's configuration.
        tokenizer: parsed tokenizer.json, empty when there is none.
    """
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class")
    hub = declared.removesuffix("Fast") if isinstance(declared, str) else None
    kind = config.get("model_type")
    known = isinstance(kind, str) and (kind in _BY_TYPE or kind in _OWN_CLASS_DECIDES)
    own = (_BY_TYPE.get(str(kind)) or BACKEND) if known else None
    if hub == "LlamaTokenizer" and kind not in _OWN_CLASS_DECIDES and _is_byte_level(tokenizer):
        return BACKEND
    if hub is None or own is None:
        return hub or own
    if own == hub:
        return hub
    if own == BACKEND:
        return BACKEND
    return own if kind in _OWN_CLASS_DECIDES else hub


def as_loaded(name: str | None, settings: Json, tokenizer: Json) -> tuple[Json, tuple[str, ...]]:
    """`tokenizer.json` as transformers has it once it is loaded, and a line where that is not what the file says.

    Raises:
        TokenizerError: the class is one of another kind of model.
    """
    chosen = CLASSES.get(name or "")
    model = tokenizer.get("model")
    if chosen is None or not isinstance(model, dict):
        return tokenizer, ()
    if model.get("type", chosen.model) != chosen.model:
        raise TokenizerError(
            f"tokenizer.json: its model is {str(model.get('type'))[:80]!r}, but tokenizer_class {name} makes"
            f" {chosen.model} of it: expected a class that fits, or PreTrainedTokenizerFast"
        )
    loaded = {**tokenizer, **chosen.steps(settings, tokenizer)}
    if _splits_digits_more(tokenizer.get("pre_tokenizer"), loaded["pre_tokenizer"]) and _digits_are_alone(model):
        loaded["pre_tokenizer"] = tokenizer["pre_tokenizer"]  # the ids are the same, and llama.cpp has a name for it
    changed = [key for key in ("normalizer", "pre_tokenizer") if _differ(loaded.get(key), tokenizer.get(key))]
    if not changed:
        return loaded, ()
    return loaded, (f"tokenizer: {' and '.join(changed)} are {name}'s, as transformers has it, not tokenizer.json's",)


def default_names(name: str | None) -> Json:
    """Special tokens of a class that no file has to name."""
    chosen = CLASSES.get(name or "")
    return {} if chosen is None else chosen.names


def _is_byte_level(tokenizer: Json) -> bool:
    return any("'ByteLevel'" in str(tokenizer.get(key)) for key in ("pre_tokenizer", "decoder"))


def _splits_digits_more(stored: Any, own: Any) -> bool:
    """Whether tokenizer.json cuts digits apart before the one step that the class has (SmolLM, StarCoder 2)."""
    steps = stored.get("pretokenizers") if isinstance(stored, dict) else None
    digits = {"type": "Digits", "individual_digits": True}
    return isinstance(steps, list) and len(steps) == 2 and steps[0] == digits and not _differ(steps[1], own)


def _digits_are_alone(model: Json) -> bool:
    """Whether no token holds a digit beside another character: cutting digits apart then changes nothing."""
    vocab = model.get("vocab")
    texts = vocab if isinstance(vocab, dict) else {}
    return not any(len(text) > 1 and any(character in "0123456789" for character in text) for text in texts)


def _differ(one: Any, other: Any) -> bool:
    """Whether two steps differ in more than what changes no id (offsets)."""
    return bool(_plain(one) != _plain(other))


def _plain(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    kept = {key: _plain(value) for key, value in step.items() if key not in ("trim_offsets", "invert")}
    for key in ("pretokenizers", "normalizers"):
        if isinstance(kept.get(key), list):
            steps = [_plain(entry) for entry in kept[key]]
            return steps[0] if len(steps) == 1 else {**kept, key: steps}
    return kept


def _flag(settings: Json, key: str, *, default: bool) -> bool:
    value = settings.get(key)
    return value if isinstance(value, bool) else default


def _byte_level(settings: Json, *, use_regex: bool = True) -> dict[str, Any]:
    prefix = _flag(settings, "add_prefix_space", default=False)
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def _sequence(*steps: Json) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _model(tokenizer: Json, **changes: Any) -> dict[str, Any]:
    return {**tokenizer["model"], **changes}


def _llama(settings: Json, tokenizer: Json) -> dict[str, Any]:
    scheme = "never"
    if _flag(settings, "add_prefix_space", default=True):
        scheme = "always" if settings.get("legacy") is True else "first"
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    model = _model(tokenizer, byte_fallback=True, ignore_merges=False, unk_token=None)
    return {"normalizer": None, "pre_tokenizer": space, "model": model}


def _code_llama(settings: Json, tokenizer: Json) -> dict[str, Any]:
    return _llama({**settings, "legacy": False}, tokenizer)


def _gemma(_settings: Json, tokenizer: Json) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    model = _model(tokenizer, byte_fallback=True, ignore_merges=False)
    return {"normalizer": escape, "pre_tokenizer": split, "model": model}


def _split_by(expression: str) -> Callable[[Json, Json], dict[str, Any]]:
    def steps(settings: Json, tokenizer: Json) -> dict[str, Any]:
        split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        words = _sequence(split, _byte_level(settings, use_regex=False))
        return {"normalizer": _NFC, "pre_tokenizer": words, "model": _model(tokenizer, ignore_merges=False)}

    return steps


def _gpt2(settings: Json, tokenizer: Json) -> dict[str, Any]:
    model = _model(tokenizer, ignore_merges=False)
    return {"normalizer": None, "pre_tokenizer": _byte_level(settings), "model": model}


def _roberta(settings: Json, tokenizer: Json) -> dict[str, Any]:
    return {**_gpt2(settings, tokenizer), "post_processor": _as_roberta(settings)}


def _neox(settings: Json, tokenizer: Json) -> dict[str, Any]:
    return {**_gpt2(settings, tokenizer), "normalizer": _NFC, "post_processor": None}


def _cohere(settings: Json, tokenizer: Json) -> dict[str, Any]:
    words = _sequence({"type": "Digits", "individual_digits": True}, _byte_level(settings))
    return {**_gpt2(settings, tokenizer), "normalizer": _NFC, "pre_tokenizer": words}


def _bert(settings: Json, _tokenizer: Json) -> dict[str, Any]:
    clean = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": _flag(settings, "tokenize_chinese_chars", default=True),
        "strip_accents": settings.get("strip_accents"),
        "lowercase": _flag(settings, "do_lower_case", default=True),
    }
    around = _around(_name(settings, "cls", "[CLS]"), _name(settings, "sep", "[SEP]"))
    return {"normalizer": clean, "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": around}


def _mpnet(settings: Json, tokenizer: Json) -> dict[str, Any]:
    return {**_bert(settings, tokenizer), "post_processor": _as_roberta(settings)}


def _t5(_settings: Json, tokenizer: Json) -> dict[str, Any]:
    model = _model(tokenizer, unk_id=2, byte_fallback=False)
    return _words_of_pieces(tokenizer, "always") | {"post_processor": _around(None, "</s>"), "model": model}


def _xlm_roberta(settings: Json, tokenizer: Json) -> dict[str, Any]:
    scheme = "always" if _flag(settings, "add_prefix_space", default=True) else "never"
    around = _around(_name(settings, "bos", "<s>"), _name(settings, "eos", "</s>"))
    model = _model(tokenizer, unk_id=3, byte_fallback=False)
    return _words_of_pieces(tokenizer, scheme) | {"post_processor": around, "model": model}


def _words_of_pieces(tokenizer: Json, scheme: str) -> dict[str, Any]:
    """WhitespaceSplit and Metaspace; of the normaliser the compiled rules alone."""
    normalizer = tokenizer.get("normalizer")
    listed = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    steps = listed if isinstance(listed, list) else [normalizer]
    compiled = next((s for s in steps if isinstance(s, dict) and s.get("type") == "Precompiled"), None)
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": True}
    return {"normalizer": compiled, "pre_tokenizer": _sequence({"type": "WhitespaceSplit"}, space)}


def _name(settings: Json, role: str, default: str) -> str:
    value = settings.get(f"{role}_token")
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else default


def _as_roberta(settings: Json) -> dict[str, Any]:
    ends = {role: [_name(settings, role, default), 0] for role, default in (("sep", "</s>"), ("cls", "<s>"))}
    return {"type": "RobertaProcessing", **ends}


def _around(first: str | None, last: str) -> dict[str, Any]:
    """A template with special tokens around one text."""
    ends = [[{"SpecialToken": {"id": text, "type_id": 0}}] if text else [] for text in (first, last)]
    return {"type": "TemplateProcessing", "single": [*ends[0], {"Sequence": {"id": "A", "type_id": 0}}, *ends[1]]}


_BERT_NAMES = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
               "mask_token": "[MASK]"}  # fmt: skip
_ROBERTA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
                  "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
_LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_END_OF_TEXT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_QWEN_NAMES = {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}

CLASSES: Mapping[str, TokenizerClass] = {
    "BertTokenizer": TokenizerClass(_bert, "WordPiece", _BERT_NAMES),
    "CodeLlamaTokenizer": TokenizerClass(_code_llama, "BPE", _LLAMA_NAMES),
    "CohereTokenizer": TokenizerClass(_cohere, "BPE", {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>",
                                                       "pad_token": "<PAD>", "unk_token": "<UNK>"}),
    "GemmaTokenizer": TokenizerClass(_gemma, "BPE", {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
                                                     "pad_token": "<pad>", "mask_token": "<mask>"}),
    "GPT2Tokenizer": TokenizerClass(_gpt2, "BPE", _END_OF_TEXT),
    "GPTNeoXTokenizer": TokenizerClass(_neox, "BPE", {**_END_OF_TEXT, "pad_token": "<|padding|>"}),
    "LlamaTokenizer": TokenizerClass(_llama, "BPE", _LLAMA_NAMES),
    "MPNetTokenizer": TokenizerClass(_mpnet, "WordPiece", {**_ROBERTA_NAMES, "unk_token": "[UNK]"}),
    "Qwen2Tokenizer": TokenizerClass(_split_by(_QWEN_SPLIT), "BPE", _QWEN_NAMES),
    "Qwen3_5Tokenizer": TokenizerClass(_split_by(_QWEN35_SPLIT), "BPE", _QWEN_NAMES),
    "RobertaTokenizer": TokenizerClass(_roberta, "BPE", _ROBERTA_NAMES),
    "T5Tokenizer": TokenizerClass(_t5, "Unigram", {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}),
    "XLMRobertaTokenizer": TokenizerClass(_xlm_roberta, "Unigram", _ROBERTA_NAMES),
}  # fmt: skip
