"""Which blocks of a model are read, in order: for tests that hold that each is read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def blocks_entered(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of each block of a `BlockwiseModel` that is opened from now on."""
    entered: list[int] = []
    block = model.block
    monkeypatch.setattr(model, "block", lambda index: entered.append(index) or block(index))
    return entered
