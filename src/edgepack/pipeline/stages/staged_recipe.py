"""A whole recipe as values: passes, what the export makes, pack, validate, certify, and constraints on all of it.

Passes are read by `quant.passes.recipe`; what contradicts what is `pipeline.stages.contradictions`'.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import RecipeError
from edgepack.packaging.coding.streams import DEFAULT_LEVEL
from edgepack.pipeline.export_options import declared_options
from edgepack.quant.passes.recipe import (
    STAGES,
    Recipe,
    parse_settings,
    parsed_file,
    passes_of,
    passes_toml,
    recipe_table,
    refuse_unknown,
)
from edgepack.quant.passes.settings import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PACK = {"level": Setting("whole", low=1, high=19, default=DEFAULT_LEVEL)}
VALIDATE = {
    "text": Setting("text"),
    "ctx": Setting("whole", low=4, high=1 << 24),
    "chunks": Setting("whole", low=1, high=1 << 32),
    "min_agreement": Setting("number", low=0, high=1),
    "max_kl": Setting("number", low=0),
    "max_perplexity_ratio": Setting("number", low=0),
}
CERTIFY = {"stored_tokens": Setting("whole", low=1, high=1 << 24, default=4096)}
CONSTRAINTS = {
    "max_accuracy_drop": Setting("number", low=0, high=1, open_end=True),
    "min_ratio": Setting("number", low=0),
    "max_memory": Setting("size", low=1),
    "max_size": Setting("size", low=1),
}
# Options of an export that the stages themselves decide, or that no recipe holds.
_NOT_OF_A_RECIPE = frozenset({
    "recipe", "passes", "output", "force", "pack", "resume", "dry_run", "validate", "text", "chunks", "provenance",
    "threads", "device", "factors", "shard_size", "mmproj", "mmproj_type",
})  # fmt: skip
_KINDS = {"path": "text", "text": "text", "count": "whole", "number": "number", "flag": "flag", "switch": "flag"}


@dataclass(frozen=True)
class Constraints:
    """Bars on every stage; None is no bar.

    Attributes:
        max_accuracy_drop: the share of the text's tokens that the original predicts as its first choice, less that of
            the file; the upper end of the 95 % interval counts.
        min_ratio: least bytes of the source's tensors over bytes of the file that is shipped.
        max_memory: greatest memory of the process, in bytes, without pages of mapped files.
        max_size: greatest length of the file that is shipped, in bytes.
    """

    max_accuracy_drop: float | None = None
    min_ratio: float | None = None
    max_memory: int | None = None
    max_size: int | None = None

    @property
    def given(self) -> dict[str, float]:
        """Those that have a value."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class StagedRecipe:
    """What is done to a model, stage by stage.

    Attributes:
        passes: with the calibration; None where the recipe names neither.
        passes_text: the same as TOML, which an export takes.
        export: fields of `ExportRequest`.
        pack: settings of the archive; None for none.
        validate: how the file is judged; None for no stage of its own.
        certify: settings of the certificate; None for none.
        constraints: checked after each stage.
        sha256: of the recipe as it was written.
    """

    passes: Recipe | None
    passes_text: str
    export: Mapping[str, Any]
    pack: Mapping[str, Any] | None
    validate: Mapping[str, Any] | None
    certify: Mapping[str, Any] | None
    constraints: Constraints
    sha256: str

    @property
    def scoring(self) -> Mapping[str, Any]:
        """How text is scored: what `[validate]` says, or its defaults."""
        return self.validate if self.validate is not None else parse_settings({}, VALIDATE, "validate")


def read_staged(path: Path) -> StagedRecipe:
    """The recipe in a file of TOML or JSON.

    Raises:
        RecipeError: unreadable, neither of the two, an unknown key, a value out of range, or passes that contradict
            each other.
    """
    return parsed_file(path, parse_staged)


def parse_staged(text: str) -> StagedRecipe:
    """The recipe that `text` spells; raises as `read_staged`."""
    table = recipe_table(text)
    refuse_unknown(table, {"calibration", "pass", *STAGES}, "")
    own = {key: value for key, value in table.items() if key not in STAGES}
    recipe = passes_of(own, text) if own else None
    return StagedRecipe(
        recipe, passes_toml(own) if own else "", _export(table.get("export", {})), _optional(table, "pack", PACK),
        _optional(table, "validate", VALIDATE), _optional(table, "certify", CERTIFY),
        Constraints(**parse_settings(table.get("constraints", {}), CONSTRAINTS, "constraints")),
        hashlib.sha256(text.encode()).hexdigest(),
    )  # fmt: skip


def _optional(table: Mapping[str, Any], name: str, known: Mapping[str, Setting]) -> dict[str, Any] | None:
    return parse_settings(table[name], known, name) if name in table else None


def _export(table: Any) -> dict[str, Any]:
    """Fields of `ExportRequest`, as far as they are given."""
    if not isinstance(table, dict):
        raise RecipeError(f"export: expected a table, got {table!r}")
    options = {name: option for name, option in declared_options().items() if name not in _NOT_OF_A_RECIPE}
    refuse_unknown(table, {"target", *options}, "export")
    found: dict[str, Any] = {}
    for name, value in table.items():
        path, option = f"export.{name}", options.get(name)
        if option is not None and option.value == "texts":
            found[name] = _texts(value, path)
        elif option is not None and option.value == "size":
            found[name] = Setting("size", low=1).parse(value, path)
        else:
            choices = () if option is None else option.choices
            kind = "text" if option is None else _KINDS[option.value]
            found[name] = Setting(kind, tuple(choices)).parse(value, path)
    return found


def _texts(value: Any, path: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise RecipeError(f"{path}: expected a text or a list of texts, got {value!r}")
    return tuple(values)
