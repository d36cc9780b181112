"""What a family's data say of a GGUF that is read backwards, into a checkpoint: settings that its metadata imply.

Most families need nothing of it: keys that many share are `export.backwards`' own table, tensors the rules themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from edgepack.gguf.types import Value

    Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Header:
    """Metadata and tensors of a GGUF as the families ask for them.

    Attributes:
        name: `general.architecture`.
        metadata: all keys.
        shapes: tensor → shape, row-major.
        read: the values of a vector by its name, float32.
    """

    name: str
    metadata: Mapping[str, Value]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], NDArray[np.float32]]

    def get(self, key: str) -> Any:
        """The value of the architecture's own `key`, None where it is absent; floats as their shortest decimals."""
        found = self.metadata.get(f"{self.name}.{key}")
        return None if found is None else _plain(found.value)

    def exact(self, key: str, default: float) -> float:
        """The value as the file has it, for what is computed of it."""
        found = self.metadata.get(f"{self.name}.{key}")
        return default if found is None else float(found.value)

    def count(self, key: str) -> int:
        """The value as a count; 0 where it is absent, of a list the largest."""
        value = self.get(key)
        return int(max(value, default=0) if isinstance(value, list) else value or 0)

    @property
    def even_width(self) -> int:
        """Of a head, where the hidden size is split among them; 0 without heads."""
        heads = self.count("attention.head_count")
        return self.count("embedding_length") // heads if heads else 0

    def flags(self, key: str) -> list[bool]:
        """The value as truths, one a layer; a list of counts is true where they are not 0."""
        value = self.get(key)
        return [bool(each) for each in value] if isinstance(value, list) else []

    def has(self, part: str) -> bool:
        """Whether a tensor's name holds `part`."""
        return any(part in name for name in self.shapes)

    def layers_with(self, part: str) -> list[bool]:
        """For each layer whether it has a tensor called `blk.N.{part}`."""
        return [f"blk.{layer}.{part}" in self.shapes for layer in range(self.count("block_count"))]


def _plain(value: Any) -> Any:
    """A number of single precision as the shortest decimal that stands for it."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    return [_plain(each) for each in value] if isinstance(value, list) else value


def no_settings(_header: Header) -> Settings:
    """For families whose settings all stand in keys that many share."""
    return {}


def nothing_stored(_header: Header) -> Mapping[str, NDArray[np.float32]]:
    """For families all of whose tensors are tensors in a GGUF."""
    return {}


@dataclass(frozen=True)
class Backwards:
    """What reading back needs of a family.

    Attributes:
        settings: keys of config.json that this family's metadata imply; they come before the shared table's.
        stored: checkpoint name → tensor whose values stand in metadata (`Family.stored`).
        architectures: further `general.architecture`s that the family's classes become (`Family.instead`).
    """

    settings: Callable[[Header], Settings] = no_settings
    stored: Callable[[Header], Mapping[str, NDArray[np.float32]]] = nothing_stored
    architectures: tuple[str, ...] = ()
