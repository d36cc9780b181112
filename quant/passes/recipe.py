"""A recipe: passes over a model's weights in order with their settings, read from TOML or JSON and checked whole.

Values only; what a pass does is left to `quant.passes`, stages and constraints to `pipeline.stages`.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from edgepack.errors import RecipeError, UsageError
from edgepack.quant.passes.registry import ZEROS, contradiction, find_pass, pass_names
from edgepack.quant.passes.settings import Setting, Settings
from edgepack.text_file import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

Parsed = TypeVar("Parsed")

CALIBRATION: dict[str, Setting] = {
    "text": Setting("text"),
    "sequences": Setting("whole", low=1, high=1_000_000, default=64),
    "length": Setting("whole", low=2, high=1_000_000),
    "seed": Setting("whole", low=0, high=2**63 - 1, default=0),
    "importance": Setting("flag"),
}


STAGES = ("export", "pack", "validate", "certify", "constraints")
"""Tables of a recipe that `edgepack compress` runs stage by stage; an export knows passes alone."""


@dataclass(frozen=True)
class PassStep:
    """One `[[pass]]` table.

    Attributes:
        name: of a pass that `quant.passes.registry` knows.
        settings: every key of the pass, defaults filled in; None for keys that are absent.
    """

    name: str
    settings: Settings

    @property
    def is_correction(self) -> bool:
        """Whether the step corrects a finished file instead of changing weights."""
        return find_pass(self.name).is_correction(self.settings)

    @property
    def depends_on_target(self) -> bool:
        """Whether the step's work is made for the types of one file."""
        return find_pass(self.name).depends_on_target(self.settings)

    @property
    def needs_tokens(self) -> bool:
        """Whether the step looks at calibration tokens."""
        return find_pass(self.name).needs_tokens(self.settings)

    @property
    def leaves_zeros(self) -> bool:
        """Whether the step leaves zeros that only some types of the file can hold."""
        return ZEROS in find_pass(self.name).leaves(self.settings)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that have a value."""
        return {key: value for key, value in self.settings.items() if value is not None}


@dataclass(frozen=True)
class Recipe:
    """What is done to a model before and after it is quantised.

    Attributes:
        passes: in order.
        calibration: `[calibration]`, defaults filled in: `text` (a path, or None for the model's own samples),
            `sequences`, `length`, `seed`, and `importance`: whether the file is quantised with an importance matrix;
            None leaves it to `with_importance`.
        text: the recipe as it was written, TOML or JSON, for the file's metadata.
    """

    passes: tuple[PassStep, ...]
    calibration: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""

    @property
    def with_importance(self) -> bool:
        """Whether the file gets an importance matrix: where nobody says, if text is read for anything else too.

        Passes on weights alone, as pruning by magnitude and plain SVD, would otherwise have the model write text of its
        own for that, which takes longer than they do.
        """
        told = self.calibration.get("importance")
        if told is not None:
            return bool(told)
        return self.calibration.get("text") is not None or any(s.needs_tokens or s.is_correction for s in self.passes)

    @property
    def shown(self) -> str:
        """`text` for a file that is given away: the calibration text by its name, not by its place on a machine."""
        table = recipe_table(self.text)
        path = table.get("calibration", {}).get("text")
        if not isinstance(path, str):
            return self.text
        last = re.split(r"[/\\]", path)[-1]
        if _is_json(self.text):
            table["calibration"]["text"] = last
            return json.dumps(table, indent=2, ensure_ascii=False)
        name = _toml(last)
        return re.sub(r"(?m)^(\s*text\s*=\s*).*$", lambda found: f"{found[1]}{name}", self.text)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file of TOML or JSON.

    Raises:
        RecipeError: unreadable, neither of the two, an unknown key, a value out of range, or passes that contradict
            each other.
    """
    return parsed_file(path, parse_recipe)


def parsed_file(path: Path, parse: Callable[[str], Parsed]) -> Parsed:
    """What `parse` makes of a recipe's file; raises RecipeError, which names the file, where it cannot be read too."""
    try:
        text = read_text(path)
    except UsageError as error:
        raise RecipeError(str(error)) from None
    try:
        return parse(text)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse_recipe(text: str) -> Recipe:
    """The recipe that `text` spells in TOML or JSON; raises as `read_recipe`."""
    table = recipe_table(text)
    staged = next((name for name in STAGES if name in table), None)
    if staged is not None:
        raise RecipeError(f"{staged}: belongs to `edgepack compress`, which runs a recipe stage by stage; an export"
                          " takes calibration and pass")  # fmt: skip
    return passes_of(table, text)


def passes_of(table: Mapping[str, Any], text: str) -> Recipe:
    """The passes and the calibration of a parsed recipe.

    Args:
        table: as `recipe_table` gives it; any key but `pass` and `calibration` is refused.
        text: what it was parsed from.

    Raises:
        RecipeError: as `read_recipe`.
    """
    refuse_unknown(table, {"pass", "calibration"}, "")
    calibration = parse_settings(table.get("calibration", {}), CALIBRATION, "calibration")
    steps = table.get("pass", [])
    if not isinstance(steps, list):
        raise RecipeError("pass: expected [[pass]] tables, got one [pass]")
    passes = tuple(_step(step, f"pass[{number}]") for number, step in enumerate(steps))
    _check_order(passes)
    return Recipe(passes, calibration, text.strip())


def recipe_table(text: str) -> dict[str, Any]:
    """The tables of a recipe in TOML, or in JSON, which begins with a brace as TOML never does.

    Raises:
        RecipeError: neither of the two, or a key that stands twice in one object.
    """
    try:
        table: dict[str, Any] = json.loads(text, object_pairs_hook=_once) if _is_json(text) else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # each library's own error is a ValueError
        raise RecipeError(f"not {'JSON' if _is_json(text) else 'TOML'}: {error}") from None
    return table


def _is_json(text: str) -> bool:
    return text.lstrip().startswith("{")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RecipeError(f"{key}: stands twice in one object")
        found[key] = value
    return found


def passes_toml(table: Mapping[str, Any]) -> str:
    """The passes and the calibration of a parsed recipe as TOML: what an export is given of a recipe with stages."""
    lines = ["[calibration]", *_toml_lines(table.get("calibration", {}))]
    for step in table.get("pass", []):
        lines += ["", "[[pass]]", *_toml_lines(step)]
    return "\n".join(lines) + "\n"


def _toml_lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in table.items()]


def inline_recipe(passes: Sequence[str], calibration: Mapping[str, Any]) -> Recipe:
    """A recipe from command-line options such as `prune:method=wanda,sparsity=0.6`; raises as `read_recipe`."""
    lines = ["[calibration]", *(f"{key} = {_toml(value)}" for key, value in calibration.items() if value is not None)]
    for text in passes:
        name, _, rest = text.partition(":")
        lines += ["[[pass]]", f"name = {_toml(name)}"]
        for pair in filter(None, rest.split(",")):
            key, equals, value = pair.partition("=")
            if not equals or not re.fullmatch(r"[a-z_]+", key.strip()):
                raise RecipeError(f"pass '{text}': expected NAME:KEY=VALUE,KEY=VALUE, got '{pair}'")
            lines.append(f"{key.strip()} = {_literal(value.strip())}")
    return parse_recipe("\n".join(lines) + "\n")


def followed_by(recipe: Recipe, name: str) -> Recipe:
    """The recipe with one pass more at its end, with its defaults; raises RecipeError where it cannot follow."""
    passes = (*recipe.passes, _step({"name": name}, "pass"))
    _check_order(passes)
    text = f"{recipe.text}\n\n[[pass]]\nname = {_toml(name)}".strip()
    return replace(recipe, passes=passes, text=text)


def _literal(text: str) -> str:
    """A value of an inline pass as TOML: a number or a flag as it is, else text."""
    return text if re.fullmatch(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?|true|false", text) else _toml(text)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's too


def refuse_unknown(table: Mapping[str, Any], known: set[str], path: str) -> None:
    """Refuse a table with a key that is none of `known`; raises RecipeError with its path."""
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
            raise RecipeError(f"{path + '.' if path else ''}{key}: unknown key; {hint}")


def parse_settings(table: Any, known: Mapping[str, Setting], path: str) -> dict[str, Any]:
    """The checked values of a table, defaults filled in; raises RecipeError with the path of what is wrong."""
    if not isinstance(table, dict):
        raise RecipeError(f"{path}: expected a table, got {table!r}")
    refuse_unknown(table, set(known), path)
    return {
        key: setting.parse(table[key], f"{path}.{key}") if key in table else setting.default
        for key, setting in known.items()
    }


def _step(table: Any, path: str) -> PassStep:
    names = pass_names()
    if not isinstance(table, dict) or "name" not in table:
        raise RecipeError(f"{path}.name: missing; known passes: {', '.join(names)}")
    name = Setting("text", names).parse(table["name"], f"{path}.name")
    given, declared = {key: value for key, value in table.items() if key != "name"}, find_pass(name)
    step = PassStep(name, parse_settings(given, declared.settings, path))
    declared.check(step.settings, frozenset(given), path)
    return step


def _check_order(passes: Sequence[PassStep]) -> None:
    """Refuse what would undo an earlier pass."""
    for number, step in enumerate(passes):
        for earlier_number, earlier in enumerate(passes[:number]):
            reason = contradiction((earlier.name, earlier.settings), (step.name, step.settings))
            if reason:
                raise RecipeError(
                    f"pass[{number}]: '{step.name}' comes after pass[{earlier_number}] '{earlier.name}', {reason}"
                )
