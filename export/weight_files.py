"""Which files of a folder hold its weights: the order in which transformers' `from_pretrained` looks for them.

It opens the files it decides on and reads their headers; what the tensors mean is left to `export.architectures`.
Order: `_get_resolved_checkpoint_files` of transformers 5 (modeling_utils.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.export.json_file import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.formats.packed import RawTensors
    from edgepack.export.formats.torch_file import TorchFile
    from edgepack.files.remote import RemoteFile
    from edgepack.model import TensorSpec

    WeightFile = SafetensorsFile | TorchFile

ORDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The first that is there is read, and no other."""

_INDEX = ".index.json"
_NAMED_KEY = "transformers_weights"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")
# What else may lie where weights were expected: (pattern of a name, what it is and what to do).
_OTHERS = (
    (r"^adapter_config\.json$", "an adapter lies there: give its base as MODEL and this folder with --adapter"),
    (r"\.gguf$", "a GGUF lies there: give the file itself as MODEL"),
    (r"^(consolidated.*|params\.json)$", "the publisher's own layout lies there: expected Hugging Face's"),
    (r"^(tf_model\.h5|model\.ckpt.*|flax_model.*\.msgpack)$", "weights of TensorFlow or Flax lie there: save torch's"),
    (r"^(model|pytorch_model)\.[\w-]+\.(safetensors|bin)$", "a variant lies there: rename it to model.safetensors"),
    (r"\.(pt|pth|ckpt)$", "a training checkpoint lies there: save the model with save_pretrained"),
    (r"\.onnx$", "an ONNX model lies there: expected the weights that it was made from"),
    (r"^snapshots$", "this is a model's folder in the Hugging Face cache: give the folder below snapshots/"),
)  # fmt: skip


@dataclass(frozen=True)
class ShardedTensors:
    """Tensors spread over several files: a `TensorSource`.

    Attributes:
        files: tensor name → the open file that holds it.
    """

    files: Mapping[str, WeightFile]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor, shard by shard."""
        return {name: file.specs_of(name) for name, file in self.files.items()}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        return self.files[name].read_rows(name, start, stop)

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """As `SafetensorsFile.read_bytes`."""
        return self.files[name].read_bytes(name, start, stop)


@dataclass(frozen=True)
class Weights:
    """The weights of a folder.

    Attributes:
        tensors: as they are stored.
        notes: a line for each choice between files.
    """

    tensors: RawTensors
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightFolder:
    """A model's folder, some of whose weights may lie where a URL leads.

    Attributes:
        path: of the folder.
        remote: name → file of weights that are not in it.
    """

    path: Path
    remote: Mapping[str, RemoteFile] = field(default_factory=dict)

    def holds(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.remote or (self.path / name).is_file()

    def names(self) -> list[str]:
        """Of all files and folders in it, sorted."""
        return sorted({*self.remote, *(path.name for path in self.path.iterdir())})

    def open(self, name: str) -> WeightFile:
        """One file of weights, by its suffix."""
        if name not in self.remote:
            return open_weight_file(self.path / name)
        if not name.endswith(".safetensors"):  # others are unpickled, which takes a file
            raise CheckpointError(f"{self.remote[name].url}: expected safetensors where MODEL is a URL")
        return SafetensorsFile(self.path / name, self.remote[name])


def open_weights(folder: WeightFolder, config: Mapping[str, Any]) -> Weights:
    """Open the files that transformers would read; only headers are read.

    Args:
        folder: of the model.
        config: parsed `config.json`, which may name the file itself (`transformers_weights`).

    Raises:
        CheckpointError: no weights, or a file that is missing, truncated or hostile.
    """
    named = config.get(_NAMED_KEY)
    present = [name for name in ORDER if folder.holds(name)]
    if named is not None:
        chosen = _checked_name(folder, named, f"config.json: {_NAMED_KEY}")
    elif present:
        chosen = present[0]
    else:
        raise _no_weights(folder)
    unread = [name for name in present if name != chosen]
    notes = (f"weights: {chosen} is read, as transformers does; {', '.join(unread)} is not",) if unread else ()
    if chosen.endswith(_INDEX):
        tensors, more = _open_shards(folder, chosen)
        return Weights(tensors, notes + more)
    return Weights(folder.open(chosen), notes)


def open_weight_file(path: Path) -> WeightFile:
    """One file of weights, by its suffix."""
    if path.suffix != ".bin":
        return SafetensorsFile(path)
    from edgepack.export.formats.torch_file import TorchFile

    return TorchFile(path)


def refuse_other_folder(folder: Path) -> None:
    """Raise CheckpointError where a folder has no `config.json`, saying what it is instead."""
    if (folder / "config.json").is_file():
        return
    what = _what_lies_in(folder)
    raise CheckpointError(f"{folder}: expected config.json, found none" + (f"; {what}" if what else ""))


def _no_weights(holder: WeightFolder) -> CheckpointError:
    folder, shards = holder.path, [name for name in holder.names() if _SHARD.search(name)]
    if shards:
        index = "model.safetensors.index.json" if shards[0].endswith(".safetensors") else "pytorch_model.bin.index.json"
        return CheckpointError(f"{folder}: found shards such as '{shards[0]}' without their index: expected {index}")
    what = _what_lies_in(folder)
    return CheckpointError(f"{folder}: no weights: expected {ORDER[0]} or {ORDER[1]}" + (f"; {what}" if what else ""))


def _what_lies_in(folder: Path) -> str | None:
    names = sorted(path.name for path in folder.iterdir())
    return next((what for pattern, what in _OTHERS if any(re.search(pattern, name) for name in names)), None)


def _checked_name(folder: WeightFolder, name: Any, where: str) -> str:
    """The name of a file in this folder; nothing that leads out of it."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CheckpointError(f"{where}: expected a file name in this folder, got {name!r}")
    if not folder.holds(name):
        raise CheckpointError(f"{where} is in '{name}', which is absent")
    return name


def _open_shards(folder: WeightFolder, index: str) -> tuple[ShardedTensors, tuple[str, ...]]:
    """Every tensor of every file that the index names; of a tensor that two hold, the last file's.

    transformers reads the index for the names of files alone: a tensor is where it is, not where the index says.
    """
    where = folder.path / index
    weight_map = read_json(where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where}: expected a 'weight_map' object that names a file for each tensor")
    opened: dict[str, WeightFile] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name not in opened:
            checked = _checked_name(folder, name, f"{where}: tensor '{tensor}'")
            opened[checked] = folder.open(checked)
    files = {tensor: opened[name] for name in sorted(opened) for tensor in opened[name].specs}
    return ShardedTensors(files), _index_notes(index, weight_map, files)


def _index_notes(index: str, weight_map: Mapping[str, str], files: Mapping[str, WeightFile]) -> tuple[str, ...]:
    """Where an index and its files say different things."""
    notes = []
    moved = [name for name, file in weight_map.items() if name in files and files[name].path.name != file]
    if moved:
        found = files[moved[0]].path.name
        notes.append(f"weights: {index} says that '{moved[0]}' is in {weight_map[moved[0]]}; {found}'s is taken")
    unlisted = [name for name in files if name not in weight_map]
    if unlisted:
        notes.append(f"weights: '{unlisted[0]}' is in its file but not in {index}: it is taken, as transformers does")
    absent = [name for name in weight_map if name not in files]
    if absent:
        notes.append(f"weights: {index} names '{absent[0]}', which none of its files has")
    return tuple(notes)
