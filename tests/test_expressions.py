"""Expressions of strangers mean what Python says they mean, and none takes more than its limit of time."""

from __future__ import annotations

import json
import re
import warnings
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack import expressions
from edgepack.errors import AdapterError, CheckpointError, UsageError
from edgepack.export.formats.by_module import gptqmodel_settings
from edgepack.export.lora.settings import read_settings
from edgepack.expressions import Expression, ExpressionError, is_plain
from edgepack.quant.types.choice import parse_overrides

if TYPE_CHECKING:
    from pathlib import Path

EVIL = "(a+)+$"
NAME = "model.layers." + "a" * 40 + "!"
PATTERNS = [
    r"ffn_down", r"blk\.\d\.ffn", r"model\.layers\.\d+\.mlp", r".*\.layers\.(18|19|20)\..*gate.*", r"^(?!.*down).*proj$",
    r"(?:q|k|v)_proj", r"[^.]+\.weight", r"(.*\.)?(q_proj|v_proj)$", r"a{2,3}b?", r"(a)(b)\2", r"[*+{]", r"\*\+",
]  # fmt: skip
NAMES = ["blk.0.ffn_down.weight", "model.layers.19.mlp.gate_proj", "x.down.q_proj", "aab", "abb", "*+", ""]


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "_SECONDS", 0.5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_expression_means_what_python_says(pattern: str) -> None:
    ours, theirs = Expression(pattern), re.compile(pattern)
    for name in NAMES:
        assert ours.match(name) == (theirs.match(name) is not None)
        assert ours.search(name) == (theirs.search(name) is not None)


@pytest.mark.parametrize("pattern", [EVIL, "(a|a)*$", "(.*a){30}", "(?!x)(a+)+$", "a+" * 12 + "$"])
def test_one_that_takes_for_ever_is_ended_and_stays_ended(pattern: str) -> None:
    slow = Expression(pattern)
    for _ in range(2):
        with pytest.raises(ExpressionError, match="it takes more than"):
            slow.search("a" * 60 + "!" + "b" * 60)


@settings(max_examples=300)
@given(
    pattern=st.text(alphabet="ab.*+?{2}[]()|\\^$", max_size=14), name=st.text(alphabet="ab", min_size=200, max_size=400)
)
def test_what_is_called_plain_is_matched_here_and_ends(pattern: str, name: str) -> None:
    if not is_plain(pattern):
        return
    try:
        plain = Expression(pattern)
    except ExpressionError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = re.compile(pattern)
    assert plain.search(name + "!") == (expected.search(name + "!") is not None)  # and comes to an end


def test_what_is_no_expression_or_too_long_is_refused() -> None:
    for pattern in ("(", "a" * 5000, "a{99999999999}", "[", "(" * 2000 + ")" * 2000):
        with pytest.raises(ExpressionError):
            Expression(pattern)
    with pytest.raises(ExpressionError, match="in one line"):
        Expression("(a+)+").search("a\nb")


def test_adapters_configurations_and_options_are_held_to_it(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"(.*a)*x": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="alpha_pattern .* it takes more than"):
        read_settings(tmp_path).scale(NAME, 8)
    with pytest.raises(CheckpointError, match="dynamic .* it takes more than"):
        gptqmodel_settings({"dynamic": {"+:(.*a)*x": {"bits": 2}}}, NAME)
    with pytest.raises(UsageError, match="--tensor-type .* it takes more than"):
        parse_overrides(["(.*a)*x=q6_k"]).matching(NAME)
