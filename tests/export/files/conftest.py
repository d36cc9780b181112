"""Tiny models and the bundled tokenizer, for the files around the weights."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from tests.tiny_llama import write_tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Settings → the folder of a random Llama in float32."""

    def make(name: str = "model", **settings: Any) -> Path:
        return write_tiny(tmp_path / name, **settings)

    return make


@pytest.fixture
def speaking(tmp_path: Path, books: Path) -> Callable[..., Path]:
    """The same with the bundled tokenizer of 4096 tokens."""

    def make(name: str = "model", **settings: Any) -> Path:
        folder = write_tiny(tmp_path / name, vocab_size=4096, **settings)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(books / file, folder / file)
        return folder

    return make
