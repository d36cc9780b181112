"""The registry of passes: each declares everything, imports nothing heavy, and a bad declaration is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from edgepack.quant.passes.registry import PassDeclaration, contradiction, find_pass, pass_names, registered

HERE = Path(__file__).resolve().parents[2] / "quant/passes"
FIELDS = [field.name for field in fields(PassDeclaration)]


def declaration(**changes: Any) -> PassDeclaration:
    values = {name: getattr(find_pass("gptq"), name) for name in FIELDS} | changes
    return PassDeclaration(**{name: value for name, value in values.items() if value is not MISSING})


def test_every_file_that_declares_a_pass_is_found() -> None:
    assert set(pass_names()) == {path.stem.removesuffix("_pass") for path in HERE.glob("*_pass.py")}
    assert {"prune", "awq", "gptq", "lowrank"} <= set(pass_names())


@pytest.mark.parametrize("field", FIELDS)
def test_a_declaration_without_any_of_its_fields_is_refused(field: str) -> None:
    assert all(f.default is MISSING and f.default_factory is MISSING for f in fields(PassDeclaration))
    with pytest.raises(TypeError, match=field):
        declaration(**{field: MISSING})


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"depends_on_target": None}, "depends_on_target"),
        ({"run": "apply"}, "run"),
        ({"summary": ""}, "summary"),
        ({"settings": {"damping": 0.1}}, r"settings\.damping"),
    ],
)
def test_a_field_without_a_meaning_is_refused(changes: dict[str, Any], lacking: str) -> None:
    with pytest.raises(TypeError, match=f"pass 'gptq': its declaration lacks {lacking}"):
        declaration(**changes)


def test_a_declaration_stands_in_the_file_of_its_name() -> None:
    with pytest.raises(TypeError, match="pass 'awq': expected a declaration of that name, got 'gptq'"):
        registered("awq", find_pass("gptq"))
    with pytest.raises(TypeError, match="pass 'awq': expected PASS to be a PassDeclaration, got None"):
        registered("awq", None)
    with pytest.raises(KeyError):
        find_pass("../escape")


def test_declarations_need_neither_torch_nor_numpy() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from edgepack.quant.passes.registry import find_pass, pass_names\n"
        "for name in pass_names(): find_pass(name)\nassert 'numpy' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", pass_names())
def test_a_pass_answers_every_question_with_its_defaults(name: str) -> None:
    declared = find_pass(name)
    settings = {key: setting.default for key, setting in declared.settings.items()}
    for question in (declared.depends_on_target, declared.is_correction, declared.needs_tokens):
        assert question(settings) in (True, False)
    assert all(isinstance(reason, str) and reason for reason in declared.leaves(settings).values())


def test_a_new_pass_is_held_to_what_earlier_ones_left_without_their_knowing_it(monkeypatch: Any) -> None:
    defaults = {name: {key: s.default for key, s in find_pass(name).settings.items()} for name in pass_names()}
    new = declaration(name="new", undoes=frozenset({"zeros"}))
    known = {**{name: find_pass(name) for name in pass_names()}, "new": new}
    monkeypatch.setattr("edgepack.quant.passes.registry.find_pass", known.__getitem__)
    assert contradiction(("prune", defaults["prune"]), ("new", {})) == "whose zeros it would fill"
    assert not contradiction(("gptq", defaults["gptq"]), ("new", {}))
    assert contradiction(("gptq", defaults["gptq"]), ("awq", defaults["awq"])).startswith("which has rounded")
