"""Settings of the tiny models' families that llama.cpp's graphs do not honour are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from edgepack.export.config import ModelConfig
from edgepack.export.mapping import completed, find_family
from references.tiny_decoders import DECODERS

from edgepack.errors import UnsupportedModelError

# (tiny model of test_architectures, settings, message)
REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("mistral-small-3", {"text_config": {"model_type": "mistral4"}}, "no family is for Mistral3.* of type 'mistral4'"),
)


def metadata_of(config: dict[str, Any]) -> object:
    published = ModelConfig(config)
    family = find_family(published)
    return family.metadata(completed(published, family))


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_setting_that_the_graph_cannot_honour_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str
) -> None:
    tiny = next(tiny for tiny in DECODERS if tiny.name == name)
    config = tiny.configuration().to_dict() | {"architectures": [tiny.family + tiny.head]}
    assert metadata_of(config)
    with pytest.raises(UnsupportedModelError, match=message) as refusal:
        metadata_of(config | changes)
    assert "\n" not in str(refusal.value)
