"""Families that transformers does not have, exported to f32 and run by llama.cpp, give what their definition does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from references.defined_models import DEFINED, DefinedModel
from references.family_oracle import assert_equal_types, exported

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("model", DEFINED, ids=lambda model: model.name)
def test_a_defined_model_gives_what_its_definition_does(model: DefinedModel, books: Path, tmp_path: Path) -> None:
    expected = model.write(tmp_path / "model", books)
    path = exported(tmp_path / "model", tmp_path / "model.gguf")
    assert model.error(path, expected) <= model.tolerance
    assert_equal_types(tmp_path / "model", path)
