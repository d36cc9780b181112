"""A recipe: passes over a model's weights in order with their settings, read from TOML and checked whole.

Values only; what a pass does is left to `quant.passes`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from edgepack.errors import RecipeError
from edgepack.pipeline.recipe_settings import CALIBRATION, SETTINGS, Setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class PassStep:
    """One `[[pass]]` table.

    Attributes:
        name: `prune`, `awq`, `gptq` or `lowrank`.
        settings: every key of the pass, defaults filled in; None for keys that are absent.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def is_correction(self) -> bool:
        """Whether the step corrects a finished file instead of changing weights."""
        return self.name == "lowrank" and self.settings["method"] == "correction"

    @property
    def depends_on_target(self) -> bool:
        """Whether the step's work is made for the types of one file."""
        return self.name in ("awq", "gptq")


@dataclass(frozen=True)
class Recipe:
    """What is done to a model before and after it is quantised.

    Attributes:
        passes: in order.
        calibration: `[calibration]`, defaults filled in: `text` (a path, or None for the model's own samples),
            `sequences`, `length`, `seed`, and `importance`: whether the file is quantised with an importance matrix.
        text: the recipe as TOML, for the file's metadata.
    """

    passes: tuple[PassStep, ...]
    calibration: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        RecipeError: unreadable, not TOML, an unknown key, a value out of range, or passes that contradict each other.
    """
    try:
        return parse_recipe(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def parse_recipe(text: str) -> Recipe:
    """The recipe that `text` spells in TOML; raises as `read_recipe`."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"not TOML: {error}") from None
    _refuse_unknown(table, {"pass", "calibration"}, "")
    calibration = _settings(table.get("calibration", {}), CALIBRATION, "calibration")
    steps = table.get("pass", [])
    if not isinstance(steps, list):
        raise RecipeError("pass: expected [[pass]] tables, got one [pass]")
    passes = tuple(_step(step, f"pass[{number}]") for number, step in enumerate(steps))
    _check_order(passes)
    return Recipe(passes, calibration, text.strip())


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


def _literal(text: str) -> str:
    """A value of an inline pass as TOML: a number or a flag as it is, else text."""
    return text if re.fullmatch(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?|true|false", text) else _toml(text)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _refuse_unknown(table: Mapping[str, Any], known: set[str], path: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
            raise RecipeError(f"{path + '.' if path else ''}{key}: unknown key; {hint}")


def _settings(table: Any, known: Mapping[str, Setting], path: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise RecipeError(f"{path}: expected a table, got {table!r}")
    _refuse_unknown(table, set(known), path)
    return {
        key: setting.parse(table[key], f"{path}.{key}") if key in table else setting.default
        for key, setting in known.items()
    }


def _step(table: Any, path: str) -> PassStep:
    if not isinstance(table, dict) or "name" not in table:
        raise RecipeError(f"{path}.name: missing; known passes: {', '.join(SETTINGS)}")
    name = Setting("text", tuple(SETTINGS)).parse(table["name"], f"{path}.name")
    given = {key: value for key, value in table.items() if key != "name"}
    step = PassStep(name, _settings(given, SETTINGS[name], path))
    if name == "prune":
        _check_prune(step.settings, given, path)
    if name == "lowrank":
        _check_low_rank(step.settings, given, path)
    return step


def pattern_group(pattern: str, path: str = "pattern") -> tuple[int, int]:
    """(zeros, group) of a pattern such as `2:4`; (0, 0) for `unstructured`."""
    if pattern == "unstructured":
        return 0, 0
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise RecipeError(f"{path}: expected 'unstructured' or N:M with 0 < N < M, such as '2:4', got {pattern!r}")
    return int(match[2]) - int(match[1]), int(match[2])


def _check_prune(settings: Mapping[str, Any], given: Mapping[str, Any], path: str) -> None:
    zeros, group = pattern_group(settings["pattern"], f"{path}.pattern")
    if settings["method"] == "layers":
        if settings["layers"] is None:
            raise RecipeError(f"{path}.layers: method 'layers' needs how many")
        extra = sorted(set(given) - {"method", "layers"})
        if extra:
            raise RecipeError(f"{path}.{extra[0]}: method 'layers' removes whole layers and has no such setting")
        return
    if settings["layers"] is not None:
        raise RecipeError(f"{path}.layers: belongs to method 'layers', got method '{settings['method']}'")
    if not group and settings["sparsity"] is None:
        raise RecipeError(f"{path}.sparsity: missing")
    if group and settings["sparsity"] not in (None, zeros / group):
        raise RecipeError(
            f"{path}.sparsity: pattern '{settings['pattern']}' means {zeros / group:g}, got {settings['sparsity']}"
        )
    if group and settings["allocation"] != "uniform":
        raise RecipeError(f"{path}.allocation: pattern '{settings['pattern']}' is the same in every layer")


def _check_low_rank(settings: Mapping[str, Any], given: Mapping[str, Any], path: str) -> None:
    corrects = settings["method"] == "correction"
    limits = [key for key in ("rank", "variance", "size") if settings[key] is not None]
    if len(limits) != 1:
        allowed = "'rank' or 'size'" if corrects else "'rank' or 'variance'"
        raise RecipeError(f"{path}: expected exactly one of {allowed}, got {' and '.join(limits) or 'none'}")
    misplaced = {"variance", "output"} if corrects else {"size", "covariance"}
    for key in sorted(misplaced & set(given)):
        raise RecipeError(f"{path}.{key}: method '{settings['method']}' has no such setting")


def _check_order(passes: Sequence[PassStep]) -> None:
    """Refuse what would undo an earlier pass."""
    for number, step in enumerate(passes):
        for earlier_number, earlier in enumerate(passes[:number]):
            reason = _contradiction(earlier, step)
            if reason:
                raise RecipeError(
                    f"pass[{number}]: '{step.name}' comes after pass[{earlier_number}] '{earlier.name}', {reason}"
                )


def _contradiction(earlier: PassStep, later: PassStep) -> str:
    """Why `later` must not come after `earlier`; empty where it may."""
    if earlier.is_correction:
        return "which corrects the finished file: it must be last"
    if later.is_correction:
        return ""
    if earlier.name == "gptq":
        return "which has rounded the weights for the file: nothing may change them any more"
    if earlier.name == later.name == "awq":
        return "which has already folded its scales"
    zeros = earlier.name == "prune" and earlier.settings["method"] != "layers"
    if zeros and later.name == "lowrank":
        return "whose zeros it would fill"
    return ""
