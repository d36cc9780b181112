"""An embedder is judged by its embeddings: their angles and what they find nearest, never by a head that was made up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from references.tiny_checkpoints import random_model, write_checkpoint
from references.tiny_encoders import EMBEDDERS

from edgepack.cli import execute as run
from edgepack.edge.fidelity.embeddings import compare_embeddings
from edgepack.errors import CheckFailedError, NumericError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

VECTORS = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)


def test_a_scaled_copy_agrees_wholly() -> None:
    found = compare_embeddings(VECTORS, 3 * VECTORS)
    assert found.mean_cosine == pytest.approx(1)
    assert (found.retrieval_agreement, found.overlap) == (1, 1)
    assert 0.9 < found.retrieval_interval[0] < 1


def test_figures_are_their_definitions() -> None:
    other = VECTORS + np.random.default_rng(1).standard_normal(VECTORS.shape).astype(np.float32)
    found = compare_embeddings(VECTORS, other)
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(VECTORS, other, strict=True)]
    assert found.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.least_cosine == pytest.approx(min(cosines), abs=1e-6)

    def nearest(vectors: np.ndarray) -> list[int]:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return [max((j for j in range(40) if j != i), key=lambda j: float(unit[i] @ unit[j])) for i in range(40)]

    same = np.mean([a == b for a, b in zip(nearest(VECTORS), nearest(other), strict=True)])
    assert found.retrieval_agreement == pytest.approx(same)
    assert not found.gate(0.99)[0].passed


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError):
        compare_embeddings(VECTORS[:2], VECTORS[:2])
    with pytest.raises(CheckFailedError):
        compare_embeddings(VECTORS, VECTORS[:, :8])
    with pytest.raises(NumericError):
        compare_embeddings(VECTORS, np.zeros_like(VECTORS))


@pytest.mark.parametrize("name", ["bert", "qwen-3-embedding"])
@pytest.mark.filterwarnings("ignore")
def test_an_export_has_its_originals_embeddings_and_rounding_moves_them(
    name: str, books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = next(each for each in EMBEDDERS if each.name == name)
    folder = write_checkpoint(random_model(tiny), tmp_path / "model", books)
    (folder / "modules.json").write_text(json.dumps([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]))  # fmt: skip
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    text = tmp_path / "t.txt"
    text.write_text("\n\n".join(f"The {word} came down to the old house at night." for word in
                                 ("man", "woman", "child", "dog", "rain", "king", "moon", "dust")))  # fmt: skip
    for target, least in (("f32", 0.9999), ("q4_0", 0.5)):
        out = tmp_path / f"{target}.gguf"
        assert run(["export", str(folder), "--target", f"gguf-{target}", "-o", str(out)]) == 0
        capsys.readouterr()
        assert run(["validate", str(out), "--reference", str(folder), "--text", str(text), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["texts"], told["candidate"]) == (8, out.name)
        assert least <= told["least_cosine"] < 1 + 1e-9
    assert told["mean_cosine"] < 0.9999
    assert run(["validate", str(out), "--reference", str(folder), "--text", str(text), "--max-kl", "1"]) == 2
    assert run(["validate", str(out), "--reference", str(tmp_path / "f32.gguf"), "--text", str(text),
                "--min-agreement", "0.9999"]) == 1  # fmt: skip
