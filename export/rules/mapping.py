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

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.arranged_rows import JoinedRows
from edgepack.export.rules.pooling import pooling_type
from edgepack.export.rules.without_graph import OTHER_GRAPH, WITHOUT_GRAPH
from edgepack.export.stored_blocks import source_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.family import Dimensions, Family, Origin, TensorRule
    from edgepack.model import TensorSource


_STACKS: dict[str, Callable[[ModelConfig], int]] = {
    "{e}": lambda config: config.n_experts,
    "{h}": lambda config: config.n_heads,
    "{k}": lambda config: config.n_kv_heads,
}


@cache
def families() -> dict[str, Family]:
    """Model class → family, from every file in `export/architectures`."""
    folder = Path(__file__).parents[1] / "architectures"
    found: dict[str, Family] = {}
    for path in sorted(folder.glob("*.py")):
        module = importlib.import_module(f"edgepack.export.architectures.{path.stem}")
        for family in getattr(module, "FAMILIES", None) or (module.FAMILY,):
            found |= dict.fromkeys(family.classes, family)
    return found


def find_family(config: ModelConfig) -> Family:
    """The family of a configuration.

    Raises:
        UnsupportedModelError: llama.cpp has no graph of the architecture, or it is unknown (the known are listed).
    """
    known, name = families(), config.architecture
    if name in WITHOUT_GRAPH:
        raise UnsupportedModelError(f"{name}: the installed llama.cpp has no graph of this architecture")
    if name in OTHER_GRAPH:
        raise UnsupportedModelError(f"{name}: {OTHER_GRAPH[name]}")
    if name not in known:
        raise UnsupportedModelError(
            f"unknown architecture '{name}': give a GGUF of the model instead, which may have any architecture that"
            f" llama.cpp knows (llama.cpp's convert_hf_to_gguf.py makes one); known: {', '.join(sorted(known))}"
        )
    family = known[name]
    return family.instead(config) or family


def prepared(config: ModelConfig, family: Family) -> ModelConfig:
    """The configuration with the family's defaults, spellings and forms, whatever its settings are.

    Raises:
        CheckpointError: `text_config` is no object.
    """
    if family.nested:
        config = config.of_text()
    config = config.respelt(family.spellings).with_defaults(family.defaults)
    return config.changed(**family.derived(config))


def completed(config: ModelConfig, family: Family) -> ModelConfig:
    """The configuration as `prepared`, the family's requirements checked.

    Raises:
        CheckpointError: `text_config` is no object.
        UnsupportedModelError: a setting that llama.cpp cannot honour.
    """
    config = prepared(config, family)
    for requirement in family.requirements:
        violation = requirement.violation(config)
        if violation is not None:
            raise UnsupportedModelError(f"{config.label}: {violation}")
    return config


def observed(config: ModelConfig, family: Family, names: Collection[str]) -> ModelConfig:
    """The configuration with what the checkpoint's tensors themselves say (`Family.observed`).

    Args:
        config: completed.
        family: of the model.
        names: of the checkpoint's tensors.
    """
    return config.changed(**family.observed(names))


def map_tensors(family: Family, config: ModelConfig, source: TensorSource) -> dict[str, Rows]:
    """GGUF name → rows, for every tensor of the model.

    Args:
        family: of the model.
        config: with the family's defaults.
        source: the checkpoint's tensors.

    Raises:
        CheckpointError: tensors that are missing, unknown, or of a shape that contradicts the configuration.
    """
    dimensions = family.dimensions(config)
    mapped: dict[str, Rows] = {}
    used: set[str] = set()
    for rule, layer in _instances(family, config):
        origin, names = _origin(rule, layer, family, config, source)
        if config.tied and rule.sources == family.tied_head:
            used |= set(names)
            continue
        missing = [name for name in names if name not in source.specs]
        if missing and (rule.optional or (rule.sources == family.tied_head and _gives_embeddings(family, config))):
            continue
        if missing:
            hint = "; if the head is the embedding, config.json must say tie_word_embeddings: true"
            more = hint if rule.sources == family.tied_head else ""
            raise CheckpointError(f"checkpoint lacks tensor '{missing[0]}', which {family.name} needs{more}")
        parts: list[Rows] = [source_rows(source, name) for name in names]
        if origin.transform is not None:
            parts = [origin.transform(part, config) for part in parts]
        target = rule.target.format(i=layer)
        stacked = rule.stacked or any(stack in origin.sources for stack in _STACKS)
        rows, shape = _joined(parts, stacked=stacked), _shape(rule, dimensions)
        if rows.shape != shape:
            raise CheckpointError(
                f"tensor '{names[0]}': config.json makes '{target}' {list(shape)},"
                f" the checkpoint gives {list(rows.shape)}"
            )
        mapped[target] = rows
        used |= set(names)
    _refuse_unknown(family, set(source.specs) - used, (*family.unused, *family.superfluous(config)))
    return family.computed(config) | mapped


def _gives_embeddings(family: Family, config: ModelConfig) -> bool:
    """Whether the model may lack a head: its class has none, or sentence-transformers pools what it gives."""
    return family.headless and (config.architecture.endswith("Model") or pooling_type(config) is not None)


def _instances(family: Family, config: ModelConfig) -> Iterator[tuple[TensorRule, int]]:
    """Every rule, once for each layer that has it."""
    for rule in family.tensors:
        layers = range(family.blocks(config)) if "{i}" in rule.target else range(1)
        for layer in layers:
            if rule.when is None or rule.when(config, layer):
                yield rule, layer


def _origin(
    rule: TensorRule, layer: int, family: Family, config: ModelConfig, source: TensorSource
) -> tuple[Origin, list[str]]:
    """The first origin that the checkpoint has, with its names there; the rule's own where it has none."""
    for origin in rule.origins:
        names = _source_names(origin.sources, layer, config)
        for ours, theirs in (("", ""), *family.renames, ("model.", "")):
            if names[0].startswith(ours) and theirs + names[0].removeprefix(ours) in source.specs:
                return origin, [theirs + name.removeprefix(ours) for name in names]
    return rule.origins[0], _source_names(rule.sources, layer, config)


def _source_names(sources: str | tuple[str, ...], layer: int, config: ModelConfig) -> list[str]:
    names = []
    for pattern in (sources,) if isinstance(sources, str) else sources:
        stack = next((stack for stack in _STACKS if stack in pattern), None)
        numbers = range(1 if stack is None else _STACKS[stack](config))
        names += [pattern.format(i=layer, n=layer - config.n_layers, e=n, h=n, k=n) for n in numbers]
    return names


def _shape(rule: TensorRule, dimensions: Dimensions) -> tuple[int, ...]:
    return tuple(int(name) if name.isdecimal() else dimensions[name] for name in rule.shape.split())


def _joined(parts: list[Rows], *, stacked: bool) -> Rows:
    """Parts one below the other, or experts stacked along a new first dimension; () where they do not match."""
    if len({part.shape[0 if stacked else 1 :] for part in parts}) > 1:
        return JoinedRows(parts, ())
    if stacked:
        return JoinedRows(parts, (len(parts), *parts[0].shape))
    if len(parts) == 1:
        return parts[0]
    return JoinedRows(parts, (sum(part.shape[0] for part in parts), *parts[0].shape[1:]))


def _refuse_unknown(family: Family, left: set[str], unused: tuple[str, ...]) -> None:
    unknown = sorted(name for name in left if not any(re.search(pattern, name) for pattern in unused))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(f"checkpoint has tensor '{unknown[0]}'{more}, which {family.name} does not use")
