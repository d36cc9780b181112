"""Recipes with passes that train, from the command to the file: what it is made of, what it says, what may follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute
from edgepack.errors import CalibrationError, RecipeError
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType

if TYPE_CHECKING:
    from typing import Any

BOOKS = Path(__file__).resolve().parents[1] / "data/books-llama-6m"
TEXT = "The captain looked over the sea and said that no ship would come before the morning. " * 40


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """A recipe of one pass over a short text."""
    (tmp_path / "text.txt").write_text(TEXT)

    def write(passes: str) -> list[str]:
        head = f'[calibration]\ntext = "{tmp_path / "text.txt"}"\nsequences = 2\nlength = 16\nimportance = false\n'
        (tmp_path / "recipe.toml").write_text(f"{head}[[pass]]\n{passes}\n")
        return ["export", str(BOOKS), "--recipe", str(tmp_path / "recipe.toml"), "--threads", "1", "--json"]

    return write


def test_a_ternary_file_with_norms_is_llama_cpps_bitnet(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = recipe('name = "ternary"\nsteps = 1\nbatch = 2\nnorms = true')
    assert execute([*command, "--target", "gguf-tq2", "-o", str(tmp_path / "m.gguf")]) == 0
    [figures] = json.loads(capsys.readouterr().out)["passes"]
    header = read_header(tmp_path / "m.gguf")
    assert header.metadata["general.architecture"].value == "bitnet"
    assert header.tensor("blk.5.ffn_sub_norm.weight").type is GGMLType.F32
    assert header.tensor("blk.0.ffn_down.weight").type is GGMLType.TQ2_0
    assert (figures["name"], figures["steps_run"], figures["ternary_weights"]) == ("ternary", 1, 4_718_592)
    assert figures["text_tokens"] == 3 * 16  # two to learn from and one held out, of more than `sequences`


def test_the_variant_may_follow(recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = recipe('name = "ternary"\nsteps = 1\nbatch = 2')
    assert execute([*command, "--target", "edge-ternary", "-o", str(tmp_path / "m.gguf")]) == 0
    found = json.loads(capsys.readouterr().out)
    coded = [tensor for tensor in found["tensors"] if tensor["type"] == "ternary" and tensor["name"].startswith("blk.")]
    assert len(coded) == 42
    assert all(tensor["error"] < 1e-9 for tensor in coded)


def test_text_for_one_sequence_is_too_little_to_judge_by(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = recipe('name = "prune"\nschedule = "cubic"\nsparsity = 0.5\nsteps = 1\nevery = 1')
    (tmp_path / "text.txt").write_text("The captain looked over the sea and said no more than a word of the morning.")
    assert execute([*command, "--target", "gguf-f16", "-o", str(tmp_path / "m.gguf")]) == CalibrationError.exit_code
    assert not (tmp_path / "m.gguf").exists()
    capsys.readouterr()
    command = recipe('name = "prune"\nsparsity = 0.5\nsteps = 1')
    assert execute([*command, "--target", "gguf-f16", "-o", str(tmp_path / "m.gguf")]) == RecipeError.exit_code
    assert "pass[0].steps: belongs to schedule 'cubic'" in capsys.readouterr().err
