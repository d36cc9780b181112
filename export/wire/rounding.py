"""One rounding of a whole model under way: settings, blocks in a scratch folder, and the plan of the file at the end.

How a matrix is rounded is left to `wire`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.row_origin import RowOrigin
from edgepack.export.rows import ArrayRows
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.ggml.codec import dequantize_rows
from edgepack.quant.codecs.ggml.host_grids import encode_host

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.plan import ExportPlan, PlannedTensor
    from edgepack.export.wire.stack import Span
    from edgepack.gguf.types import Value
    from edgepack.quant.codecs.ggml.host_grids import Host
    from edgepack.quant.wire.rounding import Rounded

DEFAULT_TRELLIS = 8


@dataclass(frozen=True)
class WireSettings:
    """How matrices are put on grids.

    Attributes:
        host: the container.
        rdo: rate-distortion pull, see `quant.wire.rounding.round_matrix`.
        trellis: states of the trellis, one of `edgepack.trellis.STATES`; 0 for none.
        feedback: whether errors are fed back; else H's diagonal alone counts.
        column_steps: whether columns have steps of their own.
        row_steps: whether rows have steps of their own, by the curvature at the outputs.
        allocation: whether matrices have steps by their curvature; else steps are proportional to their weights.
        drift: whether blocks are fitted to what they receive from the blocks already rounded.
        device: a torch device.
        memory: bytes that the GGUF may have, for which every input group gets a host of its own; 0 for `host` alone.
    """

    host: Host
    rdo: float = 0.0
    trellis: int = DEFAULT_TRELLIS
    feedback: bool = True
    column_steps: bool = True
    row_steps: bool = True
    allocation: bool = True
    drift: bool = False
    device: str = "cpu"
    memory: int = 0


@dataclass(frozen=True)
class ScratchRows:
    """Rows of blocks in a scratch file, as `export.rows.StoredBlocks` wants them.

    Attributes:
        path: the file.
        stored_type: of the blocks.
        shape: [rows, columns].
        dtype: storage type of the matrix that they were made from.
    """

    path: Path
    stored_type: GGMLType
    shape: tuple[int, ...]
    dtype: str

    @property
    def origin(self) -> RowOrigin:
        """As `export.rows.Rows.origin`: none, the rows are rounded and perhaps folded."""
        return RowOrigin.computed(self.shape[0])

    def read_blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` (included) to `stop` (not included): uint8 [rows, bytes of a row]."""
        size = self.stored_type.row_bytes(self.shape[-1])
        return np.fromfile(self.path, np.uint8, (stop - start) * size, offset=start * size).reshape(-1, size)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """As `export.rows.Rows.read`."""
        return dequantize_rows(self.stored_type, self.read_blocks(start, stop), stop - start, self.shape[-1])


@dataclass
class WireResult:
    """What one rounding of the whole model gave.

    Attributes:
        plan: of the GGUF.
        raised_rows: GGUF name → rows whose step was raised to fit the host.
        losses: GGUF name → predicted mean KL divergence a token that its rounding costs, in nats.
    """

    plan: ExportPlan
    raised_rows: dict[str, int] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Predicted mean KL divergence a token, in nats."""
        return sum(self.losses.values())


class Rounding:
    """Takes rounded rows, in order, and makes the plan.

    Args:
        scratch: a folder for the blocks; what it held of an earlier rounding is replaced or, where asked, taken.

    Attributes:
        vectors: GGUF name → what folding made of a vector.
    """

    def __init__(self, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch
        self.vectors: dict[str, NDArray[np.float32]] = {}
        self._encoded: dict[str, ScratchRows] = {}
        self._raised: dict[str, int] = {}
        self._losses: dict[str, float] = {}

    def store(self, span: Span, host: Host, rounded: Rounded, rows: slice) -> None:
        """Keep rows `rows` of `rounded`, which are the span's, as blocks of the host."""
        lattice, tensor = rounded.lattice.rows(rows), span.tensor
        steps, factors = lattice.steps.cpu().numpy(), lattice.factors.cpu().numpy()
        path = self._scratch / f"{tensor.info.name}.rows"
        path.touch()
        with path.open("r+b") as stream:  # spans of experts come in any order
            stream.seek(span.start * host.kind.row_bytes(tensor.info.shape[-1]))
            encode_host(host, steps, rounded.quants[rows].cpu().numpy(), factors).tofile(stream)
        self._encoded[tensor.info.name] = ScratchRows(path, host.kind, tensor.info.shape, tensor.rows.dtype)

    def finish(self, layer: str, key: str, matrices: Sequence[PlannedTensor], trellises: Mapping[str, int]) -> None:
        """Note that a layer is whole, so that an interrupted rounding need not do it again.

        Args:
            layer: its name.
            key: all that its blocks depend on.
            matrices: its tensors on grids.
            trellises: what was decided on them.
        """
        names = [tensor.info.name for tensor in matrices]
        note = {
            "key": key, "trellises": dict(trellises),
            "kinds": {name: self._encoded[name].stored_type.name for name in names},
            "losses": {name: self._losses[name] for name in names},
            "raised": {name: self._raised[name] for name in names if name in self._raised},
        }  # fmt: skip
        partial = self._scratch / f"partial-{layer}.json"
        partial.write_text(json.dumps(note))
        partial.replace(self._scratch / f"{layer}.json")

    def resume(self, layer: str, key: str, matrices: Sequence[PlannedTensor]) -> dict[str, int] | None:
        """Take a layer that was finished under the same key; what was decided on its trellises, None where it was not.

        Args:
            layer: its name.
            key: all that its blocks depend on.
            matrices: its tensors on grids.
        """
        path = self._scratch / f"{layer}.json"
        note = json.loads(path.read_text()) if path.is_file() else {}
        if note.get("key") != key:
            path.unlink(missing_ok=True)  # its blocks are about to be replaced
            return None
        for tensor in matrices:
            name, info = tensor.info.name, tensor.info
            rows = self._scratch / f"{name}.rows"
            self._encoded[name] = ScratchRows(rows, GGMLType[note["kinds"][name]], info.shape, tensor.rows.dtype)
        self._losses |= note["losses"]
        self._raised |= note["raised"]
        return dict(note["trellises"])

    def rows(self, name: str) -> NDArray[np.float32]:
        """All rows of a matrix as they were rounded, folds included."""
        stored = self._encoded[name]
        return stored.read(0, stored.shape[0])

    def count(self, span: Span, raised: int, loss: float) -> None:
        """Add a span's raised rows and its predicted divergence."""
        name = span.tensor.info.name
        self._losses[name] = self._losses.get(name, 0.0) + loss
        if raised:
            self._raised[name] = self._raised.get(name, 0) + raised

    def result(self, base: ExportPlan, about: dict[str, Value]) -> WireResult:
        """The plan `base` with the rounded rows in place of the original's, and more metadata."""
        tensors = []
        for tensor in base.tensors:
            name = tensor.info.name
            made = ArrayRows(self.vectors[name]) if name in self.vectors else self._encoded.get(name, tensor.rows)
            tensors.append(replace(tensor, rows=made))
        plan = replace(base, metadata={**base.metadata, **about}, tensors=tuple(tensors))
        return WireResult(plan, self._raised, self._losses)
