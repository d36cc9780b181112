"""The split expressions that llama.cpp implements, as data: structure → names for `tokenizer.ggml.pre`.

How a tokenizer.json is brought into this form is left to `pretokenizer`. The expressions are those of the
published tokenizers, as llama.cpp's src/llama-vocab.cpp quotes them where it had to adapt one; the flag says
whether llama.cpp, under that name, looks a whole word up before it merges.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]|\s+(?!\S)|\s+"
_LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


@dataclass(frozen=True)
class PreName:
    """A value of `tokenizer.ggml.pre`.

    Attributes:
        name: as llama.cpp spells it.
        ignore_merges: whether llama.cpp takes a word that is a token whole, without merging.
        families: `model_type`s for which this name is the customary one among equals.
    """

    name: str
    ignore_merges: bool = False
    families: frozenset[str] = frozenset()


def _name(name: str, *families: str, ignore_merges: bool = False) -> PreName:
    return PreName(name, ignore_merges, frozenset(families))


KNOWN_STRUCTURES: dict[tuple[str, ...], tuple[PreName, ...]] = {
    (GPT2,): (_name("gpt-2"), _name("olmo", "olmo", "gpt_neox"), _name("mpt", "mpt"), _name("exaone4", "exaone4")),
    (r"\p{N}", GPT2): (
        _name("smollm"),
        _name("starcoder", "starcoder2", "gpt_bigcode"),
        _name("command-r", "cohere", "cohere2"),
        _name("exaone", "exaone"),
        _name("codeshell", "codeshell"),
    ),
    (_LLAMA3,): (
        _name("llama-bpe", ignore_merges=True),
        _name("glm4", "glm4", "glm4_moe", "glm4_moe_lite", ignore_merges=True),
        _name("smaug-bpe"),
        _name("chatglm-bpe", "chatglm", "glm", "glm4", "glm4_moe", "glm4_moe_lite"),
        _name("dbrx", "dbrx", "olmo2", "olmo3", "phi3", "granite"),
    ),
    (_QWEN2,): (_name("qwen2"), _name("stablelm2", "stablelm")),
    (_QWEN35,): (_name("qwen35"),),
    (_TEKKEN,): (_name("tekken", ignore_merges=True),),
    (_GPT4O,): (_name("gpt-4o"), _name("llama4", "llama4", "llama4_text")),
    (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3): (_name("deepseek-v3"),),
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"): (_name("deepseek-coder"),),
}
"""Split steps in order → names, the preferred one first. Every entry has a test against `tokenizers`."""
