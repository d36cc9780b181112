"""What the names in an adapter's file say, and which tensor of the model each of them means.

Names come from the classes that were trained, which wrap the same tensors differently: `model.language_model.layers`
in one version of transformers is `language_model.model.layers` in another and in the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PAIR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>A|B)(\.default)?(\.weight)?$")
_MAGNITUDE = re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(\.default)?(\.weight)?$")
_TOKENS = re.compile(r"^(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.default)?$")
_BASE = re.compile(r"(\.token_adapter)?\.base_layer(?=\.)")
_SAVED = re.compile(r"\.modules_to_save(\.default)?(?=\.)")
_FRAMES = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_WRAPPERS = frozenset({
    "base_model", "model", "module", "language_model", "text_model", "transformer", "gpt_neox", "bert", "decoder",
})  # fmt: skip
_OLD_COPY = ".original_module."


@dataclass(frozen=True)
class AdapterKey:
    """One name of an adapter's file.

    Attributes:
        stored: as it stands in the file.
        kind: `A`, `B`, `embedding_A`, `embedding_B`, `magnitude`, `tokens`; `saved` (a module's own copy),
            `base` (the base's own tensor) or `whole` (one of the two: the settings say which).
        module: what it belongs to; for whole tensors the tensor's name.
    """

    stored: str
    kind: str
    module: str


def read_keys(names: Iterable[str]) -> list[AdapterKey]:
    """Every name that says something; copies of the untrained module, which old versions saved, are left out."""
    return [_read_key(name) for name in names if _OLD_COPY not in name]


def _read_key(stored: str) -> AdapterKey:
    name = _FRAMES.sub("", stored).removeprefix("base_model.model.")
    if match := _PAIR.match(name):
        return AdapterKey(stored, (match["embedding"] or "") + match["part"], match["module"])
    if match := _MAGNITUDE.match(name):
        return AdapterKey(stored, "magnitude", match["module"])
    if match := _TOKENS.match(name):
        return AdapterKey(stored, "tokens", match["module"])
    if _SAVED.search(name):
        return AdapterKey(stored, "saved", _SAVED.sub("", name))
    if _BASE.search(name):
        return AdapterKey(stored, "base", _BASE.sub("", name))
    return AdapterKey(stored, "whole", name)


def find_tensor(name: str, own: Iterable[str]) -> str | None:
    """The one of the model's names that means the same tensor; None where there is none, or more than one."""
    names = list(own)
    if name in names:
        return name
    wanted = bare(name)
    found = [candidate for candidate in names if bare(candidate) == wanted]
    return found[0] if len(found) == 1 else None


def bare(name: str) -> str:
    """A tensor's name without the modules that wrap the whole model."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        parts.pop(0)
    return ".".join(parts)
