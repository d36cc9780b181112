"""What a layout is: planes of a block, columns of a plane, bits of a column. Which type has which is `layouts`'."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Flip:
    """Bit `bit` of the bytes `offset`, `offset` + 1, …: where it is set, the bits of a part are inverted.

    A column of its own, in an earlier plane, must hold those bytes whole: joining needs them first.
    """

    offset: int
    bit: int


@dataclass(frozen=True)
class Part:
    """Some bits of the bytes `offset`, `offset` + 1, … of a block: (byte >> shift) & (2^width − 1)."""

    offset: int
    shift: int = 0
    width: int = 8
    flip: Flip | None = None


@dataclass(frozen=True)
class Column:
    """`count` symbols a block: symbol i joins bits of byte `offset + i` of every part, the first part lowest."""

    count: int
    parts: tuple[Part, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the symbols are the bytes themselves."""
        return self.parts[0].width == 8

    @property
    def flips(self) -> bool:
        """Whether any part is inverted where a flip says so."""
        return any(part.flip is not None for part in self.parts)


@dataclass(frozen=True)
class Plane:
    """Symbols of one distribution, compressed together.

    Attributes:
        name: what `inspect` prints.
        columns: written one after the other, each over all blocks of the chunk.
        repeats: whether it is worth looking for repeated strings; else only an entropy coder runs.
        zero: the symbol that stands for 0 where symbols are integers on a grid (256: two's complement), else None.
    """

    name: str
    columns: tuple[Column, ...]
    repeats: bool = True
    zero: int | None = None

    @cached_property
    def symbols(self) -> int:
        """Bytes of the plane for each block."""
        return sum(column.count for column in self.columns)


@dataclass(frozen=True)
class Layout:
    """The planes of a block; every bit of the block is in exactly one plane."""

    id: int
    name: str
    block_bytes: int
    planes: tuple[Plane, ...]

    def __hash__(self) -> int:
        return self.id  # that of all planes would be made anew for every chunk
