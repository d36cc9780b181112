"""Recipes: what is refused, with the path of the key, and what a good one means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import RecipeError
from edgepack.quant.passes.prune_pass import pattern_group
from edgepack.quant.passes.recipe import inline_recipe, parse_recipe, read_recipe
from edgepack.quant.passes.registry import pass_names

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
[calibration]
sequences = 32
length = 256

[[pass]]
name = "prune"
method = "wanda"
sparsity = 0.6

[[pass]]
name = "awq"
clip = false

[[pass]]
name = "lowrank"
method = "correction"
size = "500kB"
"""


def test_a_recipe_is_read_in_order_with_defaults() -> None:
    recipe = parse_recipe(GOOD)
    assert [step.name for step in recipe.passes] == ["prune", "awq", "lowrank"]
    assert recipe.passes[0].settings["sparsity"] == 0.6
    assert recipe.passes[0].settings["compare"] == "auto"
    assert recipe.passes[1].settings["clip"] is False
    assert recipe.passes[2].settings["size"] == 500_000
    assert recipe.passes[2].is_correction
    assert recipe.calibration["sequences"] == 32
    assert recipe.with_importance


@pytest.mark.parametrize(
    ("calibration", "steps", "expected"),
    [
        ("", "magnitude", False),  # nothing else reads a text: none is written for importance alone
        ('text = "books.txt"\n', "magnitude", True),
        ("importance = true\n", "magnitude", True),
        ("", "wanda", True),
        ("importance = false\n", "wanda", False),
    ],
)
def test_importance_is_measured_where_it_is_asked_for_or_text_is_read_anyway(
    calibration: str, steps: str, expected: bool
) -> None:
    recipe = parse_recipe(f'[calibration]\n{calibration}[[pass]]\nname = "prune"\nmethod = "{steps}"\nsparsity = 0.5\n')
    assert recipe.with_importance is expected


PRUNE = '[[pass]]\nname = "prune"\n'
LOW_RANK = '[[pass]]\nname = "lowrank"\n'
GPTQ, AWQ = '[[pass]]\nname = "gptq"\n', '[[pass]]\nname = "awq"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"^x: unknown key; known: calibration, pass"),
        (PRUNE + "sparsty = 0.5", r"^pass\[0\]\.sparsty: unknown key; did you mean 'sparsity'\?"),
        ("[calibration]\nsequence = 3", r"^calibration\.sequence: unknown key; did you mean 'sequences'\?"),
        ('[[pass]]\nname = "pruen"', r"^pass\[0\]\.name: expected 'awq' or 'gptq' or 'lowrank' or 'prune'"),
        ("[[pass]]\nsparsity = 0.5", r"^pass\[0\]\.name: missing"),
        ("[pass]\nname = 'prune'", r"^pass: expected \[\[pass\]\] tables"),
        (PRUNE, r"^pass\[0\]\.sparsity: missing"),
        (PRUNE + "sparsity = 1.0", r"^pass\[0\]\.sparsity: expected 0 to 1 \(not included\), got 1\.0"),
        (PRUNE + "sparsity = 'half'", r"^pass\[0\]\.sparsity: expected a number, got 'half'"),
        (PRUNE + "sparsity = true", r"^pass\[0\]\.sparsity: expected a number, got True"),
        (PRUNE + "sparsity = nan", r"^pass\[0\]\.sparsity: expected 0 to 1"),
        (PRUNE + "sparsity = 0.6\npattern = '2:4'", r"^pass\[0\]\.sparsity: pattern '2:4' means 0\.5, got 0\.6"),
        (PRUNE + "pattern = '4:2'", r"^pass\[0\]\.pattern: expected 'unstructured' or N:M"),
        (PRUNE + "pattern = '2:4'\nallocation = 'owl'", r"^pass\[0\]\.allocation: pattern '2:4' is the same"),
        (PRUNE + "method = 'layers'", r"^pass\[0\]\.layers: method 'layers' needs how many"),
        (PRUNE + "method = 'layers'\nlayers = 2\nsparsity = 0.5", r"^pass\[0\]\.sparsity: method 'layers' removes"),
        (PRUNE + "sparsity = 0.5\nlayers = 2", r"^pass\[0\]\.layers: belongs to method 'layers', got method 'wanda'"),
        (LOW_RANK, r"^pass\[0\]: expected exactly one of 'rank' or 'variance', got none"),
        (LOW_RANK + "rank = 4\nvariance = 0.9", r"^pass\[0\]: expected exactly one of .* got rank and variance"),
        (LOW_RANK + "rank = 4\ncovariance = 'full'", r"^pass\[0\]\.covariance: method 'svd' has no such setting"),
        (LOW_RANK + "method = 'correction'\nvariance = 0.9", r"^pass\[0\]\.variance: method 'correction' has no"),
        (LOW_RANK + "method = 'correction'\nsize = '5 apples'", r"^pass\[0\]\.size: size '5 apples'"),
        (GPTQ + AWQ, r"^pass\[1\]: 'awq' comes after pass\[0\] 'gptq', which has rounded"),
        (AWQ + AWQ, r"^pass\[1\]: 'awq' comes after pass\[0\] 'awq', which has already folded"),
        (PRUNE + "sparsity = 0.5\n" + LOW_RANK + "rank = 4", r"^pass\[1\]: 'lowrank' .* whose zeros it would fill"),
        (LOW_RANK + "method = 'correction'\nrank = 4\n" + AWQ, r"^pass\[1\]: 'awq' .* it must be last"),
        ("[[pass", r"^not TOML"),
    ],
)
def test_a_bad_recipe_is_refused_with_the_path_of_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text)


def test_a_file_is_named_in_what_is_said_of_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("x = 1")
    with pytest.raises(RecipeError, match=r"mine\.toml: x: unknown key"):
        read_recipe(path)
    with pytest.raises(RecipeError, match=r"absent\.toml: cannot be read: No such file"):
        read_recipe(tmp_path / "absent.toml")


def test_inline_passes_are_the_same_recipe_and_its_text_reads_back() -> None:
    recipe = inline_recipe(
        ["prune:method=wanda,sparsity=0.6", "awq:clip=false", "lowrank:method=correction,size=500kB"],
        {"sequences": 32, "length": 256, "text": None},
    )
    assert recipe.passes == parse_recipe(GOOD).passes
    assert recipe.calibration == parse_recipe(GOOD).calibration
    assert parse_recipe(recipe.text) == recipe


@pytest.mark.parametrize("text", ["prune:0.6", "prune:a b=1", "prune:method"])
def test_a_bad_inline_pass_says_how_it_is_spelled(text: str) -> None:
    with pytest.raises(RecipeError, match="expected NAME:KEY=VALUE,KEY=VALUE"):
        inline_recipe([text], {})


@pytest.mark.parametrize(("pattern", "expected"), [("unstructured", (0, 0)), ("2:4", (2, 4)), ("1:4", (3, 4))])
def test_patterns_keep_n_of_m(pattern: str, expected: tuple[int, int]) -> None:
    assert pattern_group(pattern) == expected


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(pass_names()), st.text(max_size=12), st.one_of(st.integers(), st.text(max_size=5)))
def test_no_key_and_no_value_gives_anything_but_a_recipe_or_its_error(name: str, key: str, value: object) -> None:
    escaped = '"' + key.encode("unicode_escape").decode().replace('"', '\\"').replace("\\x", "\\u00") + '"'
    text = f'[[pass]]\nname = "{name}"\n{escaped} = {value if isinstance(value, int) else repr(value)}\n'
    try:
        parse_recipe(text)
    except RecipeError:
        pass
