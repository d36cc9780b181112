"""Idefics 3 and SmolVLM: of them the part that reads and writes text, which is Llama."""

from __future__ import annotations

from edgepack.export.architectures.llama import FAMILY as LLAMA
from edgepack.export.rules.family import Requirement
from edgepack.export.rules.text_part import text_part

FAMILY = text_part(
    LLAMA,
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
    headless=False,
    requirements=(
        *LLAMA.requirements,
        Requirement("model_type", ("llama", "idefics3", "smolvlm"), "the part that reads text must be Llama"),
    ),
)
