"""Small models that the tests of the edge run; the log of llama.cpp stays captured from the first call on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tiny_models import Shape, string, write_random

if TYPE_CHECKING:
    from pathlib import Path

CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny(models: Path) -> Path:
    """A random Llama without a chat template."""
    return write_random(models / "tiny.gguf", Shape())


@pytest.fixture(scope="session")
def tiny_chat(models: Path) -> Path:
    """The same model with a chat template."""
    return write_random(models / "tiny-chat.gguf", Shape(extra={"tokenizer.chat_template": string(CHATML)}))
