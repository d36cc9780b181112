"""A tiny model, its tokens and runs of a few steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.tiny_llama import write_tiny

from edgepack.export.checkpoint import open_checkpoint
from edgepack.quant.learning.text_blocks import TokenBlocks

if TYPE_CHECKING:
    from edgepack.model import Checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two blocks of 32, 40 tokens, tied."""
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("learning") / "m", tie_word_embeddings=True))


@pytest.fixture(scope="session")
def blocks() -> TokenBlocks:
    """18 blocks of 16 tokens, each counting up from a random one: something to learn."""
    starts = np.random.default_rng(0).integers(0, 40, (18, 1))
    return TokenBlocks((starts + np.arange(16)) % 40)
