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
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gguf.metadata import Metadata

# What gguf-py's heuristics raise over a card or a configuration of wrong types.
_BROKEN = (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError)
# gguf-py's name → keys of generation_config.json that say it, the first that is there (`Metadata.load`)
_SAMPLING = {
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc_probability": ("xtc_probability",),
    "xtc_threshold": ("xtc_threshold",),
    "temp": ("temperature",),
    "penalty_last_n": ("penalty_last_n",),
    "penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "mirostat": ("mirostat",),
    "mirostat_tau": ("mirostat_tau",),
    "mirostat_eta": ("mirostat_eta",),
}


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


def general_metadata(folder: Path, architecture: str, size: Size, kind: str = "model") -> dict[str, Value]:
    """`general.*` from the folder's name, configuration and model card, as llama.cpp's converter writes them.

    `kind` is `general.type`. A snapshot in the Hugging Face cache goes by its repository's name, not by its commit's.
    """
    import gguf
    from gguf.metadata import Metadata

    named, organization = _identity(folder.resolve())
    card = _described(folder.resolve(), named, size.total)
    if card.name is None:
        card.name = named.name
    if card.organization is None and organization is not None:
        card.organization = Metadata.id_to_title(organization)
    if card.size_label is None and size.total > 0:
        per_expert = size.experts // size.n_experts if size.n_experts else 0
        card.size_label = gguf.size_label(size.total, size.total - size.experts, per_expert, size.n_experts)
    writer = gguf.GGUFWriter(path=None, arch=architecture)
    writer.add_type(kind)
    card.set_gguf_meta_model(writer)
    return {key: _taken_over(value) for key, value in writer.kv_data[0].items()}


def _identity(folder: Path) -> tuple[Path, str | None]:
    """The path by whose name the model goes, and its publisher where the Hugging Face cache says who that is.

    The cache keeps `models--PUBLISHER--NAME/snapshots/COMMIT`.
    """
    for snapshots in folder.parents:
        cached = snapshots.parent.name
        if snapshots.name == "snapshots" and cached.startswith("models--"):
            publisher, dashes, name = cached.removeprefix("models--").partition("--")
            return snapshots.parent / (name if dashes else publisher), publisher if dashes else None
    return folder, None


def _described(folder: Path, named: Path, parameters: int) -> Metadata:
    """What card, configuration and name say, by gguf-py's rules; of a broken file nothing."""
    from gguf.metadata import Metadata

    card = _plain_card(_loaded(Metadata.load_model_card, folder))
    config = _loaded(Metadata.load_hf_parameters, folder)
    generation = _loaded(Metadata.load_generation_config, folder)
    try:
        metadata = Metadata.apply_metadata_heuristic(Metadata(), card, config, named, parameters)
    except _BROKEN:
        metadata = Metadata.apply_metadata_heuristic(Metadata(), {}, {}, named, parameters)
    for ours, theirs in _SAMPLING.items():
        value = next((generation[key] for key in theirs if generation.get(key) is not None), None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            setattr(metadata, f"sampling_{ours}", value)
    return metadata


def _loaded(load: Callable[[Path], Any], folder: Path) -> dict[str, Any]:
    """What gguf-py reads; nothing of a broken file, which is no reason not to export."""
    import yaml

    try:
        return load(folder) or {}
    except (*_BROKEN, yaml.YAMLError):
        return {}


def _plain_card(card: dict[str, Any]) -> dict[str, Any]:
    """A model card whose texts are texts: YAML makes numbers of versions and `False` of Norwegian."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value) if isinstance(value, int | float) else value

    return {key: plain(value) for key, value in card.items() if value is not None}


def _taken_over(value: Any) -> Value:
    """gguf-py's value as ours; its arrays carry no element type, ours are strings."""
    kind = ValueType(int(value.type))
    if kind is ValueType.STRING:
        return Value(kind, str(value.value))
    if kind is not ValueType.ARRAY:
        return Value(kind, value.value)
    items = list(value.value)
    if all(type(item) is int for item in items):
        return Value(kind, items, ValueType.INT32)
    return Value(kind, [str(item) for item in items], ValueType.STRING)


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


def projector_name(metadata: Mapping[str, Value], encoding: str) -> str:
    """Such as `mmproj-SmolVLM-Instruct-F16.gguf`: llama.cpp's users know projectors by the beginning.

    Args:
        metadata: the projector's.
        encoding: its type's label.
    """
    whole = f"{keys.GENERAL}size_label"
    return "mmproj-" + file_name({key: value for key, value in metadata.items() if key != whole}, encoding)
