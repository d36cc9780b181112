"""What RWKV 7's graph cannot honour is refused; what it gives, test_defined_models holds against its definition."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from fit_truth import measure
from references.defined_models import defined
from references.family_oracle import exported
from references.rwkv_by_definition import CONFIG

from edgepack.edge.fit.memory import MemoryRequest
from edgepack.errors import UnsupportedModelError
from edgepack.export.mapped_model import open_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def checkpoint(books: Path, tmp_path: Path) -> Path:
    defined("rwkv-7").write(tmp_path / "model", books)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06: llama.cpp needs 1e-05"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"attn": {"layers": [1]}}, "its graph has no layers of attention"),
    ],
)
def test_what_the_graph_cannot_honour_is_refused(changes: dict[str, object], message: str, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(UnsupportedModelError, match=message):
        open_model(checkpoint)


@pytest.mark.parametrize("request_", [MemoryRequest(256), MemoryRequest(2048, n_ubatch=256)], ids=["short", "long"])
def test_llama_cpp_reports_the_memory_that_is_predicted(
    request_: MemoryRequest, checkpoint: Path, tmp_path: Path
) -> None:
    path = exported(checkpoint, tmp_path / "model.gguf")
    assert measure("rwkv7", path, request_, simulated=False).worst[1] < 0.05
