"""Passes that are killed go on behind their last finished block, and give the bytes of a run that was not killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from wire_models import write_small_llama  # noqa: E402

import edgepack  # noqa: E402
from edgepack.quant.calibration.blocks import BlockwiseModel  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 3
RECIPES = {
    "gptq": '[[pass]]\nname = "gptq"\n',
    "awq": '[[pass]]\nname = "awq"\nsequences = 4\n',
    "sparsegpt": '[[pass]]\nname = "prune"\nmethod = "sparsegpt"\nsparsity = 0.5\n',
    "magnitude": '[[pass]]\nname = "prune"\nmethod = "magnitude"\nsparsity = 0.5\n',
    "lowrank": '[[pass]]\nname = "lowrank"\nmethod = "whitened"\nrank = 8\noutput = "adapter"\n',
    "several": '[[pass]]\nname = "prune"\nmethod = "wanda"\nsparsity = 0.3\n\n[[pass]]\nname = "gptq"\n',
}


class KilledError(BaseException):
    """Stands for a signal: no handler of errors sees it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("resume") / "small", num_hidden_layers=LAYERS)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[blocks loaded so far, load at which the run is killed, 0 for never]."""
    counts, real = [0, 0], BlockwiseModel.block

    def block(self: BlockwiseModel, index: int) -> object:
        counts[0] += 1
        if counts[0] == counts[1]:
            raise KilledError
        return real(self, index)

    monkeypatch.setattr(BlockwiseModel, "block", block)
    return counts


def make(model: Path, recipe: Path, output: Path, *, resume: bool = False) -> None:
    edgepack.export(model, target="gguf-q4km", recipe=recipe, output=output, resume=resume)


@pytest.mark.parametrize("name", RECIPES)
def test_a_pass_killed_in_any_block_goes_on_with_the_same_bytes(
    name: str, model: Path, blocks: list[int], tmp_path: Path, books: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text((books.parent / "own-words.txt").read_text(encoding="utf-8")[:30_000])
    recipe = tmp_path / "recipe.toml"
    calibration = f"[calibration]\ntext = '{text}'\nsequences = 6\nlength = 32\nimportance = true\n\n"
    recipe.write_text(calibration + RECIPES[name])
    (tmp_path / "whole").mkdir()
    whole, output = tmp_path / "whole/m.gguf", tmp_path / "m.gguf"
    make(model, recipe, whole)
    total, blocks[:] = blocks[0], [0, 0]
    for kill in (2, total):
        for made in (output, *tmp_path.glob("m-*.gguf")):  # the run before it was not interrupted: its files stay
            made.unlink(missing_ok=True)
        blocks[:] = [0, kill]
        with pytest.raises(KilledError):
            make(model, recipe, output)
        assert [path.name for path in tmp_path.glob(".edgepack-passes-*")] == [".edgepack-passes-m.gguf"]
        blocks[:] = [0, 0]
        make(model, recipe, output, resume=True)
        assert blocks[0] <= total - kill + 1, "blocks that were done were done again"
        assert output.read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob(".edgepack-passes-*"))
        for beside in whole.parent.iterdir():
            assert beside.read_bytes() == (tmp_path / beside.name).read_bytes()


def test_another_recipe_does_not_go_on_with_what_is_there(
    model: Path, blocks: list[int], tmp_path: Path, books: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPES["magnitude"])
    make(model, recipe, tmp_path / "whole.gguf")
    total, blocks[:] = blocks[0], [0, 2]
    with pytest.raises(KilledError):
        make(model, recipe, tmp_path / "m.gguf")
    recipe.write_text(RECIPES["magnitude"].replace("0.5", "0.25"))
    blocks[:] = [0, 0]
    make(model, recipe, tmp_path / "m.gguf", resume=True)
    assert blocks[0] == total


def test_an_error_leaves_no_scratch(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def block(_self: BlockwiseModel, _index: int) -> object:
        raise edgepack.errors.NumericError("layer 'x': NaN")

    monkeypatch.setattr(BlockwiseModel, "block", block)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPES["magnitude"])
    with pytest.raises(edgepack.errors.NumericError):
        make(model, recipe, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_what_gptq_measured_on_its_way_gives_the_bytes_of_measuring_again(
    model: Path, blocks: list[int], tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, recipe = tmp_path / "text.txt", tmp_path / "recipe.toml"
    text.write_text((books.parent / "own-words.txt").read_text(encoding="utf-8")[:30_000])
    recipe.write_text(f"[calibration]\ntext = '{text}'\nsequences = 6\nlength = 32\n\n{RECIPES['gptq']}")
    make(model, recipe, tmp_path / "once.gguf")
    assert blocks[0] == LAYERS, "the model was run again for what was known"
    monkeypatch.setattr("edgepack.quant.passes.gptq._Walk.end", lambda *_arguments: None)
    make(model, recipe, tmp_path / "twice.gguf")
    assert blocks[0] == 3 * LAYERS
    assert (tmp_path / "once.gguf").read_bytes() == (tmp_path / "twice.gguf").read_bytes()
