"""EmbeddingGemma: Gemma 3 that looks both ways, most of its layers through a window around each token."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.architectures.gemma3 import TEXT, sliding_keys
from edgepack.export.rules.family import Requirement
from edgepack.export.rules.metadata import common_metadata

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.gguf.types import Value

_NAME = "gemma-embedding"
_OWN = ("query_pre_attn_scalar", "use_bidirectional_attention")


def _metadata(config: ModelConfig) -> dict[str, Value]:
    keys = sliding_keys(config)
    if not keys:
        raise UnsupportedModelError(f"{config.label}: no layer slides: llama.cpp's {_NAME} needs a window")
    common = common_metadata(config, _NAME, rope_types=("default", "linear"))
    return common | {f"{_NAME}.{key}": value for key, value in keys.items()}


FAMILY = replace(
    TEXT,
    name=_NAME,
    classes=("Gemma3TextModel",),
    metadata=_metadata,
    renames=(("model.", ""),),
    requirements=(
        *(each for each in TEXT.requirements if each.key not in _OWN),
        Requirement(
            "use_bidirectional_attention", (True,), "its graph attends in both directions", absent_is_fine=False
        ),
        Requirement(
            "query_pre_attn_scalar",
            lambda config: (config.head_dim,),
            "its graph scales attention by the width of heads",
        ),
    ),
)
