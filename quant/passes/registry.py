"""Which passes there are: each declares itself in `NAME_pass.py`, beside its work, and is found by that file's name.

A declaration imports nothing heavy, so that reading a recipe needs no torch; its runner imports the work when called.
In which order a recipe names passes is `quant.passes.recipe`'s business, what they are given `export.recipe.work`'.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.quant.passes.settings import Setting, Settings

if TYPE_CHECKING:
    from edgepack.model import Checkpoint
    from edgepack.quant.passes.run import PassOutcome, PassRun

_SUFFIX = "_pass"
Check = Callable[[Settings, frozenset[str], str], None]
When = Callable[[Settings], bool]
# What passes leave in the weights that a later one could undo; a new mark needs no change in the passes there are.
ROUNDED = "rounded"  # every weight lies on the grid of the file's own type
FOLDED = "folded"  # scales are folded into the layers before
ZEROS = "zeros"  # pruned weights


def always(_settings: Settings) -> bool:
    """True with any settings."""
    return True


def never(_settings: Settings) -> bool:
    """False with any settings."""
    return False


def no_check(_settings: Settings, _given: frozenset[str], _path: str) -> None:
    """For passes whose settings do not depend on each other."""


@dataclass(frozen=True, kw_only=True)
class PassDeclaration:
    """Everything that the rest of edgepack needs to know of a pass. Nothing has a default: leaving one out is an error.

    Attributes:
        name: as recipes spell it; the declaration stands in `quant/passes/NAME_pass.py`.
        summary: one line for people.
        settings: every key that a recipe may give, in the order in which documents name them.
        check: called with all settings, the keys that the recipe gave and the path for messages, such as `pass[0]`;
            raises RecipeError where keys contradict each other.
        depends_on_target: whether the work is made for the types of one file, and done again for another.
        is_correction: whether it corrects a finished file; it changes no weight and comes last.
        needs_tokens: whether calibration tokens must be there.
        leaves: mark → why nothing that undoes it may come later, as the end of a sentence about this pass.
        undoes: the marks of earlier passes that it would undo.
        run: the work: checkpoint (not modified), settings and what a pass is given → outcome. A correction's is
            never called: the finished file is what it needs, and `export.recipe.corrections` has it.
    """

    name: str
    summary: str
    settings: Mapping[str, Setting]
    check: Check
    depends_on_target: When
    is_correction: When
    needs_tokens: When
    leaves: Callable[[Settings], Mapping[str, str]]
    undoes: frozenset[str]
    run: Callable[[Checkpoint, Settings, PassRun], PassOutcome]

    def __post_init__(self) -> None:
        calls = ("check", "depends_on_target", "is_correction", "needs_tokens", "leaves", "run")
        lacking = [key for key in calls if not callable(getattr(self, key))]
        lacking += [key for key in ("name", "summary") if not getattr(self, key)]
        lacking += [f"settings.{key}" for key, setting in self.settings.items() if not isinstance(setting, Setting)]
        if lacking:
            raise TypeError(f"pass '{self.name}': its declaration lacks {', '.join(lacking)}")


def pass_names(folder: Path | None = None) -> tuple[str, ...]:
    """Names of all passes, sorted; `folder` is for tests."""
    found = (folder or Path(__file__).parent).glob(f"*{_SUFFIX}.py")
    return tuple(sorted(path.stem.removesuffix(_SUFFIX) for path in found))


@cache
def find_pass(name: str) -> PassDeclaration:
    """The declaration of pass `name`.

    Raises:
        KeyError: there is no such pass.
        TypeError: its module declares none, or one that lacks something or has another name.
    """
    if name not in pass_names():
        raise KeyError(name)
    declared = getattr(importlib.import_module(f"edgepack.quant.passes.{name}{_SUFFIX}"), "PASS", None)
    return registered(name, declared)


def registered(name: str, declared: object) -> PassDeclaration:
    """`declared`, checked against the name of the file that it stands in; raises TypeError as `find_pass`."""
    if not isinstance(declared, PassDeclaration):
        raise TypeError(f"pass '{name}': expected PASS to be a PassDeclaration, got {declared!r}")
    if declared.name != name:
        raise TypeError(f"pass '{name}': expected a declaration of that name, got '{declared.name}'")
    return declared


def contradiction(earlier: tuple[str, Settings], later: tuple[str, Settings]) -> str:
    """Why pass `later` (name, settings) must not come after `earlier`; empty where it may."""
    first, second = find_pass(earlier[0]), find_pass(later[0])
    if first.is_correction(earlier[1]):
        return "which corrects the finished file: it must be last"
    if second.is_correction(later[1]):
        return ""
    left = first.leaves(earlier[1])
    return next((reason for mark, reason in left.items() if mark in second.undoes), "")
