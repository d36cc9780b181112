"""How tokens' embeddings become one, as sentence-transformers' files beside a model say.

Heads that give scores instead are `export.classifier`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.checkpoint import read_json
from edgepack.gguf.types import Value, u32

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig

_POOLING = {"mean_tokens": 1, "cls_token": 2, "lasttoken": 3}  # enum llama_pooling_type
_POOLING_FILE = "1_Pooling/config.json"


def pooling_metadata(config: ModelConfig, name: str) -> dict[str, Value]:
    """`{name}.pooling_type`, where sentence-transformers says what it is.

    Raises:
        UnsupportedModelError: a pooling that llama.cpp does not have.
    """
    pooling = pooling_type(config)
    return {} if pooling is None else {f"{name}.pooling_type": u32(pooling)}


def pooling_type(config: ModelConfig) -> int | None:
    """What sentence-transformers does with the tokens' embeddings; None where it says nothing."""
    if config.folder is None or not (config.folder / _POOLING_FILE).is_file():
        return None
    settings = read_json(config.folder / _POOLING_FILE)
    chosen = sorted(
        key.removeprefix("pooling_mode_") for key, on in settings.items() if on is True and key.startswith("pooling_")
    )
    if len(chosen) != 1 or chosen[0] not in _POOLING:
        raise UnsupportedModelError(
            f"{_POOLING_FILE}: pooling is {' and '.join(chosen) or 'none'}: llama.cpp needs {' or '.join(_POOLING)}"
        )
    return _POOLING[chosen[0]]
