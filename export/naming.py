"""The `general.*` metadata and the default file name, by the GGUF naming convention.

The rules are gguf-py's own (`gguf.metadata`), which llama.cpp's converter uses; this module only feeds it
and takes its answer over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.gguf import keys
from edgepack.gguf.types import Value, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Size:
    """Parameters of a model, for its size label.

    Attributes:
        total: of all tensors.
        experts: of the expert stacks among them.
        n_experts: experts a layer, 0 when dense.
    """

    total: int
    experts: int = 0
    n_experts: int = 0


def general_metadata(folder: Path, architecture: str, size: Size) -> dict[str, Value]:
    """`general.*` from the folder's name, configuration and model card, as llama.cpp's converter writes them."""
    import gguf
    import yaml
    from gguf.metadata import Metadata

    try:
        card = Metadata.load(None, folder.resolve(), None, size.total)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError):
        # A broken model card is no reason not to export: the folder's name says enough.
        card = Metadata.load(None, None, folder.resolve().name, size.total)
    if card.name is None:
        card.name = folder.resolve().name
    if card.size_label is None and size.total > 0:
        per_expert = size.experts // size.n_experts if size.n_experts else 0
        card.size_label = gguf.size_label(size.total, size.total - size.experts, per_expert, size.n_experts)
    writer = gguf.GGUFWriter(path=None, arch=architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    card.set_gguf_meta_model(writer)
    return {key: _taken_over(value) for key, value in writer.kv_data[0].items()}


def _taken_over(value: Any) -> Value:
    """gguf-py's value as ours; its arrays carry no element type, theirs are strings or integers."""
    kind = ValueType(int(value.type))
    if kind is not ValueType.ARRAY:
        return Value(kind, value.value)
    items = list(value.value)
    strings = all(isinstance(item, str) for item in items)
    return Value(kind, items, ValueType.STRING if strings else ValueType.INT32)


def file_name(metadata: Mapping[str, Value], encoding: str) -> str:
    """Such as `books-llama-6M-Q5_K_M.gguf`.

    Args:
        metadata: holds the `general.*` keys.
        encoding: a target's label.
    """
    from gguf.utility import naming_convention

    def text(key: str) -> str | None:
        value = metadata.get(f"{keys.GENERAL}{key}")
        return None if value is None else str(value.value)

    parts = [text(key) for key in ("name", "basename", "finetune", "version", "size_label")]
    name: str = naming_convention(*parts, encoding)
    return name.replace("/", "-").lstrip(".") + ".gguf"
