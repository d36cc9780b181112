"""The pre-tokenizers that llama.cpp knows by name, for a name that the user gives.

Which structure each of them has is left to `split_expressions`, as far as it is known there.
"""

from __future__ import annotations

import difflib

from edgepack.errors import UsageError

# llama_vocab::impl::load in llama.cpp's src/llama-vocab.cpp, of llama-cpp-python 0.3.36: of any other name the file
# that comes out cannot be loaded.
PRE_NAMES = frozenset(
    [
        "a.x-4.0",
        "afmoe",
        "bailingmoe",
        "bailingmoe2",
        "bloom",
        "chameleon",
        "chatglm-bpe",
        "codeshell",
        "cohere2moe",
        "command-r",
        "dbrx",
        "deepseek-coder",
        "deepseek-llm",
        "deepseek-r1-qwen",
        "deepseek-v3",
        "default",
        "exaone",
        "exaone-moe",
        "exaone4",
        "f2llmv2",
        "falcon",
        "falcon-h1",
        "falcon3",
        "gemma4",
        "gigachat",
        "glm4",
        "glm5",
        "gpt-2",
        "gpt-4o",
        "gpt3-finnish",
        "granite-docling",
        "granite-embed-multi-311m",
        "granite-embed-multi-97m",
        "grok-2",
        "hunyuan",
        "hunyuan-dense",
        "hy_v4",
        "jais",
        "jais-2",
        "jina-de",
        "jina-es",
        "jina-v1-en",
        "jina-v2-code",
        "jina-v2-de",
        "jina-v2-es",
        "jina-v5-nano",
        "joyai-llm",
        "kanana2",
        "kimi-k2",
        "kormo",
        "laguna",
        "lfm2",
        "llada-moe",
        "llama-bpe",
        "llama-v3",
        "llama3",
        "llama4",
        "megrez",
        "mellum",
        "mellum2",
        "midm-2.0",
        "minerva-7b",
        "minicpm5",
        "minimax-m2",
        "modern-bert",
        "mpt",
        "olmo",
        "phi-2",
        "pixtral",
        "poro-chat",
        "qwen2",
        "qwen35",
        "refact",
        "roberta-bpe",
        "sarvam-moe",
        "seed-coder",
        "smaug-bpe",
        "smollm",
        "solar-open",
        "spark2_5",
        "stablelm2",
        "starcoder",
        "superbpe",
        "talkie",
        "tekken",
        "tiny_aya",
        "trillion",
        "ufakzeka",
        "viking",
        "whitespace",
        "youtu",
    ]
)


def check_pre(name: str) -> None:
    """Raise UsageError unless llama.cpp knows the pre-tokenizer `name`."""
    if name not in PRE_NAMES:
        nearest = difflib.get_close_matches(name, sorted(PRE_NAMES), n=3, cutoff=0.3)
        hint = f"; the nearest are {', '.join(nearest)}" if nearest else f"; such as {', '.join(sorted(PRE_NAMES)[:5])}"
        raise UsageError(f"--pre '{name}': llama.cpp has no pre-tokenizer of that name{hint}")
