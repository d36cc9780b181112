"""Turns a family's rules and a checkpoint into the tensors of a GGUF.

Everything missing, unknown or of the wrong shape is found here, before any work. Types, bytes and files are
left to `export.plan`.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.export.rows import JoinedRows, SourceRows

from edgepack.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.export.config import ModelConfig
    from edgepack.export.family import Dimensions, Family, TensorRule
    from edgepack.export.rows import Rows

    from edgepack.model import TensorSource


@cache
def families() -> dict[str, Family]:
    """Model class → family, from every file in `export/architectures`."""
    folder = Path(__file__).parent / "architectures"
    found: dict[str, Family] = {}
    for path in sorted(folder.glob("*.py")):
        module = importlib.import_module(f"edgepack.export.architectures.{path.stem}")
        for family in getattr(module, "FAMILIES", None) or (module.FAMILY,):
            found |= dict.fromkeys(family.classes, family)
    return found


def find_family(config: ModelConfig) -> Family:
    """The family of a configuration, with its requirements checked.

    Raises:
        UnsupportedModelError: unknown (the known are listed), or a setting that llama.cpp cannot honour.
    """
    known = families()
    if config.architecture not in known:
        raise UnsupportedModelError(f"unknown architecture '{config.architecture}'; known: {', '.join(sorted(known))}")
    family = known[config.architecture]
    for requirement in family.requirements:
        keys = (requirement.key,) if isinstance(requirement.key, str) else requirement.key
        value = config.get(*keys)
        if value not in requirement.allowed and not (value is None and requirement.absent_is_fine):
            allowed = " or ".join(map(repr, requirement.allowed))
            raise UnsupportedModelError(
                f"{config.label}: {keys[0]} is {value!r}: llama.cpp needs {allowed}, because {requirement.why}"
            )
    return family


def map_tensors(family: Family, config: ModelConfig, source: TensorSource) -> dict[str, Rows]:
    """GGUF name → rows, for every tensor of the model.

    Raises:
        CheckpointError: tensors that are missing, unknown, or of a shape that contradicts the configuration.
    """
    dimensions = family.dimensions(config)
    tied = family.tied_head is not None and config.flag("tie_word_embeddings", default=False)
    skipped = {family.tied_head} if tied and family.tied_head else set()
    mapped: dict[str, Rows] = {}
    used = set(skipped)
    for rule, layer in _instances(family, config):
        names = _source_names(rule, layer, config)
        if names[0] in skipped:
            continue
        missing = [name for name in names if name not in source.specs]
        if missing and rule.optional:
            continue
        if missing:
            raise CheckpointError(f"checkpoint lacks tensor '{missing[0]}', which {family.name} needs")
        target = rule.target.format(i=layer)
        mapped[target] = _rows(rule, names, config, source, _shape(rule, dimensions))
        used |= set(names)
    _refuse_unknown(family, set(source.specs) - used)
    return mapped | family.computed(config)


def _instances(family: Family, config: ModelConfig) -> Iterator[tuple[TensorRule, int]]:
    """Every rule, once for each layer that has it."""
    for rule in family.tensors:
        layers = range(config.n_layers) if "{i}" in rule.target else range(1)
        for layer in layers:
            if rule.when is None or rule.when(config, layer):
                yield rule, layer


def _source_names(rule: TensorRule, layer: int, config: ModelConfig) -> list[str]:
    patterns = (rule.sources,) if isinstance(rule.sources, str) else rule.sources
    names = []
    for pattern in patterns:
        experts = range(config.n_experts) if "{e}" in pattern else range(1)
        names += [pattern.format(i=layer, e=expert) for expert in experts]
    return names


def _shape(rule: TensorRule, dimensions: Dimensions) -> tuple[int, ...]:
    return tuple(int(name) if name.isdecimal() else dimensions[name] for name in rule.shape.split())


def _rows(
    rule: TensorRule, names: list[str], config: ModelConfig, source: TensorSource, shape: tuple[int, ...]
) -> Rows:
    parts: list[Rows] = [SourceRows(source, name) for name in names]
    if rule.transform is not None:
        parts = [rule.transform(part, config) for part in parts]
    got: tuple[int, ...]
    if len(parts) == 1:
        got = parts[0].shape
    elif "{e}" in rule.sources:
        got = (len(parts), *parts[0].shape) if len({part.shape for part in parts}) == 1 else ()
    else:
        got = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    if got != shape:
        raise CheckpointError(
            f"tensor '{names[0]}': config.json makes '{rule.target}' {list(shape)}, the checkpoint gives {list(got)}"
        )
    return parts[0] if len(parts) == 1 else JoinedRows(parts, shape)


def _refuse_unknown(family: Family, left: set[str]) -> None:
    unknown = sorted(name for name in left if not any(re.search(pattern, name) for pattern in family.unused))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(f"checkpoint has tensor '{unknown[0]}'{more}, which {family.name} does not use")
