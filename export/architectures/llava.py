"""LLaVA: of it the part that reads and writes text, which is Llama, Mistral or Qwen 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.architectures.llama import FAMILY as LLAMA
from edgepack.export.architectures.mistral import FAMILY as MISTRAL
from edgepack.export.architectures.qwen2 import FAMILY as QWEN2
from edgepack.export.rules.family import no_other_family
from edgepack.export.rules.text_part import text_part

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rules.family import Family

_CLASS = "LlavaForConditionalGeneration"
_PARTS = {
    "mistral": text_part(MISTRAL, _CLASS, headless=False),
    "qwen2": text_part(QWEN2, _CLASS, headless=False, instead=no_other_family),
}


def _by_text(config: ModelConfig) -> Family | None:
    """Which model the text part is; transformers takes Llama where config.json does not say."""
    kind = config.model_type
    if kind in ("llama", "llava", ""):
        return None
    if kind not in _PARTS:
        raise UnsupportedModelError(
            f"{config.label}: text_config.model_type is {kind!r}: expected one of llama, {', '.join(_PARTS)}"
        )
    return _PARTS[kind]


FAMILY = text_part(LLAMA, _CLASS, headless=False, instead=_by_text)
