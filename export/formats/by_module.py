"""Settings of a quantisation that differ from module to module, by each library's own rule.

GPTQModel's `dynamic`, auto-round's `extra_config`, compressed-tensors' groups. It decides which settings a module has;
what they mean is left to each format.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.expressions import ExpressionError, expression

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|word_embeddings|wte|wpe|embed_in)$")


def objects(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A member that must be an object of objects; empty where it is absent.

    Raises:
        CheckpointError: anything else.
    """
    value = config.get(key) or {}
    if not isinstance(value, dict) or any(not isinstance(entry, dict) for entry in value.values()):
        raise CheckpointError(f"quantization_config: expected {key} to be an object of objects, got {value!r}"[:300])
    return value


class ModulePattern:
    """A regular expression of a configuration, matched against names of modules within a limit of time.

    Args:
        pattern: the expression.
        where: names it in messages.

    Raises:
        CheckpointError: it is none; from `match` and `search`: it takes too long.
    """

    def __init__(self, pattern: str, where: str) -> None:
        self._where = f"quantization_config: {where} {pattern!r:.200}"
        with self._named():
            self._expression = expression(pattern)

    def match(self, module: str) -> bool:
        """Whether it matches from the beginning of the name."""
        with self._named():
            return self._expression.match(module)

    def search(self, module: str) -> bool:
        """Whether it matches anywhere in the name."""
        with self._named():
            return self._expression.search(module)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ExpressionError as error:
            raise CheckpointError(f"{self._where}: {error}") from None


def gptqmodel_settings(config: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """A module's settings: of the patterns of `dynamic`, the first that matches from the name's beginning.

    `+:` marks a pattern that changes settings (no mark too), `-:` one of modules that are not quantised
    (`_resolve_dynamic_override` of GPTQModel).
    """
    for pattern, own in objects(config, "dynamic").items():
        if ModulePattern(pattern.removeprefix("+:").removeprefix("-:"), "dynamic").match(module):
            return config if pattern.startswith("-:") else {**config, **own}
    return config


def auto_round_settings(config: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """A module's settings: under its own name in `extra_config`, else of the first pattern there that is found in it.

    As `get_layer_config` of auto-round.
    """
    extra = objects(config, "extra_config")
    if module in extra:
        return {**config, **extra[module]}
    for pattern, own in extra.items():
        if own and ModulePattern(pattern, "extra_config").search(module):
            return {**config, **own}
    return gptqmodel_settings(config, module)


@dataclass(frozen=True)
class Group:
    """One of compressed-tensors' groups.

    Attributes:
        weights: how weights are quantised.
        layout: the format they are stored in.
    """

    weights: Mapping[str, Any]
    layout: str


class Groups:
    """The groups of a compressed-tensors configuration by what they target.

    Args:
        config: the quantisation's configuration.

    Raises:
        CheckpointError: no groups, or one without targets or a scheme.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        groups = objects(config, "config_groups")
        if not groups:
            raise CheckpointError("quantization_config: expected config_groups, got none")
        self._by_target: dict[str, Group] = {}
        for name, entry in groups.items():
            targets, weights = entry.get("targets", ["Linear"]), entry.get("weights")
            if weights is None:
                continue  # a group that quantises activations alone
            if not isinstance(weights, dict) or not isinstance(targets, list) or not all(map(_is_text, targets)):
                raise CheckpointError(f"quantization_config: group '{name}': expected targets and a scheme of weights")
            layout = str(entry.get("format") or config.get("format"))
            self._by_target |= dict.fromkeys(targets, Group(weights, layout))
        self._named = sorted(target for target in self._by_target if not target.startswith("re:"))
        self._patterns = [
            (ModulePattern(target.removeprefix("re:"), "target"), target)
            for target in sorted(self._by_target)
            if target.startswith("re:")
        ]

    def of(self, module: str) -> Group:
        """The group of a module: by its name, else by a pattern, else by its class (`match_targets`).

        Raises:
            UnsupportedModelError: no group targets the module.
        """
        if module in self._by_target:
            return self._by_target[module]
        for pattern, target in self._patterns:
            if pattern.match(module):
                return self._by_target[target]
        kind = "Embedding" if _EMBEDDINGS.search(module) else "Linear"
        if kind in self._by_target:
            return self._by_target[kind]
        if self.count == 1:
            return next(iter(self._by_target.values()))
        raise UnsupportedModelError(f"compressed-tensors checkpoint: no group targets '{module}': {self._shown()}")

    @property
    def count(self) -> int:
        """How many different ways of storing weights there are."""
        decisive = ("num_bits", "type", "strategy", "group_size", "block_structure", "symmetric")
        ways = {
            (group.layout, *(str(group.weights.get(key)) for key in decisive)) for group in self._by_target.values()
        }
        return len(ways)

    def _shown(self) -> str:
        targets: Sequence[str] = [*self._named, *(target for _, target in self._patterns)]
        return ", ".join(targets)[:300]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
