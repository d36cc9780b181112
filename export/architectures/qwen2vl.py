"""Qwen 2 and 2.5 that see: of them the part that reads and writes text, with rope in three sections.

Of llama.cpp's graphs this one alone does not read the norms' epsilon (`llama_model_qwen2vl::load_arch_hparams`)
and computes with 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.export.architectures.qwen2 import FAMILY as QWEN2
from edgepack.export.rules.family import Requirement
from edgepack.export.rules.metadata import attention_window, common_metadata
from edgepack.export.rules.mrope import MROPE, section_metadata
from edgepack.export.rules.text_part import text_part

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value

_SECTIONS = (16, 24, 24)
_LARGEST_EPSILON = 1e-6  # of the published models; a larger one would be missed


def _metadata(config: ModelConfig) -> dict[str, Value]:
    common = common_metadata(config, "qwen2vl", rope_types=MROPE, window=attention_window(config))
    sections = section_metadata(config, _SECTIONS, in_turn=False)
    return common | {f"qwen2vl.{key}": value for key, value in sections.items()}


def _epsilons(config: ModelConfig) -> tuple[float, ...]:
    """The configuration's own, as far as it is small."""
    epsilon = config.number("rms_norm_eps")
    return (epsilon if epsilon <= _LARGEST_EPSILON else 0,)


def _remarks(config: ModelConfig) -> tuple[str, ...]:
    return (f"norms: llama.cpp's qwen2vl computes without rms_norm_eps ({config.number('rms_norm_eps'):g})",)


FAMILY = text_part(
    replace(QWEN2, name="qwen2vl", metadata=_metadata),
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    requirements=(
        *QWEN2.requirements,
        Requirement("rms_norm_eps", _epsilons, "its graph leaves the norms' epsilon out"),
    ),
    remarks=_remarks,
)
