"""llama.cpp's own ids for a vocabulary: a GGUF without tensors is written and loaded vocab-only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from llama_cpp import Llama

from edgepack.gguf.types import Value, f32, string, u32
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

ARCHITECTURE: dict[str, Value] = {
    "general.architecture": string("llama"),
    "llama.context_length": u32(64),
    "llama.embedding_length": u32(32),
    "llama.block_count": u32(1),
    "llama.feed_forward_length": u32(32),
    "llama.attention.head_count": u32(1),
    "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
}

NASTY = """Hello, world! I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like tea? We'Ve a'lL
def fib(n):
\tif n < 2:\n\t\treturn n  # base case
        return fib(n-1) + fib(n - 2)   \t \n\n\n   \n \r\n\r\n  trailing   \n
3 33 333 3333 33333 333333 3333333 3.14159 1,234,567 x=0xFF v1.2.3-rc4 ½ ² ٣٤ Ⅷ
🚀 (normal) 😶\u200d🌫️ (joined) ✅ 🦙🦙 👩🏽\u200d💻 🇩🇪
我想在apple工作1314151天～ 日本語のテキスト、カタカナ。 한국어 텍스트 កាន់តែពិសេស ไทย हिन्दी العربية עברית
нещо на Български Ünïcödé naïve café résumé Straße Ελληνικά ÀÉÎÕÜ
------======= ''''''```````\"\"\"\"......!!!!!!?????? <html><body/></html> a_b__c CamelCase HTTPServer $100
€50 &amp; @user #tag
end of text
 leading space,  two,   three,    four,     five\u00a0nbsp\u2003em\u3000wide \ufeffbom \x0b\x0c vertical"""


@pytest.fixture(scope="session")
def nasty() -> str:
    """Emoji, CJK, code, runs of spaces and newlines, digits of many kinds, contractions in every case."""
    return NASTY


@pytest.fixture
def load_vocabulary(tmp_path: Path) -> Callable[[Mapping[str, Value]], Llama]:
    """Metadata → llama.cpp with that vocabulary and no weights."""

    def load(metadata: Mapping[str, Value]) -> Llama:
        path = tmp_path / "vocabulary.gguf"
        with path.open("wb") as stream:
            writer = GGUFWriter(stream, {**ARCHITECTURE, **metadata}, [])
            writer.write_header()
            writer.close()
        return Llama(model_path=str(path), vocab_only=True, verbose=False)

    return load
