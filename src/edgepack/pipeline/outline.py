"""What an export will be and what it became, as values that goals, shipping, the command line and the API share.

Nothing here is computed; plans and files are the makers'.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.export.plan import ExportPlan
    from edgepack.gguf.types import Value

# A value as JSON has it.
Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the file as scripts read it.

    Attributes:
        name: in the GGUF.
        shape: outermost dimension first.
        source_type: how the source stores it.
        type: a ggml type, or codecs.
        bytes: in the file.
        more: what only some kinds of target know, such as the components of a coded matrix.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    bytes: int
    more: Mapping[str, Json] = field(default_factory=dict)

    def as_json(self) -> dict[str, Json]:
        """The row as an object."""
        return {
            "name": self.name, "shape": list(self.shape), "source_type": self.source_type, "type": self.type,
            "bytes": self.bytes, **self.more,
        }  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """A file of which everything but its weights is known.

    Attributes:
        target: the target's name.
        label: what people call it, such as `Q5_K_M`; the last part of a default name.
        bytes: of the file, exact; its largest where parts of it may be dropped.
        shipped_bytes: of the file and what belongs beside it.
        source_bytes: what its tensors take in the source.
        tensors: in file order.
        metadata: of the file; names it.
        least_packed_share: no archive of such a file was ever a smaller share of it (tools/bench_archive.py).
        is_exact: whether `shipped_bytes` is exact.
        beside: ends of the names of adapters beside the file, after its stem.
        projector: name of the file beside it that holds what sees; None where there is none.
        limits: a line each on what the source's files say differently, the file cannot hold or the size decided.
    """

    target: str
    label: str
    bytes: int
    shipped_bytes: int
    source_bytes: int
    tensors: tuple[TensorRow, ...]
    metadata: Mapping[str, Value]
    least_packed_share: float = 0.0
    is_exact: bool = True
    beside: tuple[str, ...] = ()
    projector: str | None = None
    limits: tuple[str, ...] = ()

    def sized(self, size: int) -> Outline:
        """The outline of a file of `size` bytes, with nothing beside it."""
        return replace(self, bytes=size, shipped_bytes=size)


@dataclass(frozen=True)
class Made:
    """Files of one try, under scratch names.

    Attributes:
        outline: of the file that was made.
        files: the GGUF, or its shards.
        adapters: LoRA files that belong to it.
        projector: the file of what sees that belongs to it, or None.
        archive: the GGUF packed, where making it had to pack it.
        figures: what passes measured, one mapping a pass.
        notes: a line each on what was skipped and why.
        lines: what people are told of the making.
        more: what scripts are told of it.
    """

    outline: Outline
    files: tuple[Path, ...]
    adapters: tuple[Path, ...] = ()
    projector: Path | None = None
    archive: Path | None = None
    figures: tuple[Mapping[str, Json], ...] = ()
    notes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    more: Mapping[str, Json] = field(default_factory=dict)

    @property
    def gguf(self) -> Path:
        """The file, or its first shard."""
        return self.files[0]

    @property
    def beside(self) -> tuple[Path, ...]:
        """What belongs to the model: adapters, and what sees."""
        return (*self.adapters, *([] if self.projector is None else [self.projector]))

    @property
    def shipped_bytes(self) -> int:
        """Of the files and what belongs to them."""
        return sum(path.stat().st_size for path in (*self.files, *self.beside))


def rows_of(plan: ExportPlan) -> tuple[TensorRow, ...]:
    """Every tensor of a plan with ggml's types."""
    return tuple(
        TensorRow(tensor.info.name, tensor.info.shape, tensor.rows.dtype, tensor.info.type.name, tensor.info.nbytes)
        for tensor in plan.tensors
    )
