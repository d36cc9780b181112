"""The inputs of matrix products summed while llama.cpp computes them, as its own `llama-imatrix` sums them.

The scheduler calls back before and after each node of the graph. Running a text is `importance_collect`'s.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.llama.ggml_tensor import Tensor, check_layout, operation, read_floats, read_ids
from edgepack.errors import NumericError
from edgepack.quant.calibration.importance import ImportanceSums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgepack.edge.llama.interrupt import AbortFlag
    from edgepack.quant.calibration.importance import ImportanceEntry

_FLOAT32 = 0  # GGML_TYPE_F32
_SMALLEST_BATCH = 16  # llama.cpp's: fewer rows belong to a single token's products, not to the text's
_HEAD = "output.weight"


class ImportanceWatch:
    """The callback: which nodes are wanted, and their inputs summed.

    Args:
        include_head: watch `output.weight` too.
        abort: set where the callback fails.
    """

    def __init__(self, include_head: bool, abort: AbortFlag) -> None:
        self.sums = ImportanceSums()
        self._piece = ImportanceSums()  # of the piece of text that is being run
        self._include_head, self._abort = include_head, abort
        self._kept: dict[str, NDArray[np.uint8]] = {}
        self._copied_ids: dict[str, NDArray[np.uint8]] = {}
        self._last: tuple[int, NDArray[np.float64], int] | None = None
        self._failure: BaseException | None = None
        self._checked = False
        self._dense, self._experts = operation("MUL_MAT"), operation("MUL_MAT_ID")

    def begin(self) -> None:
        """Before a piece of text: addresses of the graph before mean nothing any more."""
        self._last, self._piece = None, ImportanceSums()

    def commit(self) -> None:
        """After a piece that ran to its end: add it to the sums."""
        self.add(self._piece.entries)

    def add(self, entries: Mapping[str, ImportanceEntry]) -> None:
        """Add what one piece gave."""
        for name, entry in entries.items():
            self.sums.add(name, entry.sums, entry.counts)

    def raise_failure(self) -> None:
        """After a piece: an error inside the callback, which could not cross llama.cpp, is raised."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def call(self, address: int, ask: bool, _user_data: object) -> bool:
        """As `ggml_backend_sched_eval_callback`: whether the node is wanted; after it, whether to go on."""
        try:
            if not self._checked:
                check_layout(address, Tensor.from_address(address))
                self._checked = True
            node = Tensor.from_address(address)
            return self._asked(node) if ask else self._computed(node)
        except BaseException as error:  # noqa: BLE001  nothing may unwind through C
            self._failure = error
            self._abort.set()  # False alone would only say that this node is not wanted
            return False

    def _asked(self, node: Tensor) -> bool:
        if node.op == self._experts:
            return True
        if node.op != self._dense:
            return False
        name, inputs = _weight_name(node), node.src[1].contents
        if inputs.type != _FLOAT32 or inputs.ne[1] < _SMALLEST_BATCH:
            return False
        if not (name.startswith("blk.") or (self._include_head and name == _HEAD)):
            return False
        if self._last is None or self._last[0] != ctypes.addressof(inputs):
            return True
        # q, k and v read the same activations, so do gate and up: they are summed already
        self._piece.add(name, self._last[1], np.array([self._last[2]]))
        return False

    def _computed(self, node: Tensor) -> bool:
        name = _weight_name(node)
        if node.op == self._experts:
            self._add_experts(name, node)
            return True
        values = read_floats(node.src[1], self._kept)
        rows = values.reshape(-1, values.shape[-1])
        sums = np.einsum("ij,ij->j", rows, rows, dtype=np.float32).astype(np.float64)[None]
        _check_finite(name, sums)
        self._last = (ctypes.addressof(node.src[1].contents), sums, len(rows))
        self._piece.add(name, sums, np.array([len(rows)]))
        return True

    def _add_experts(self, name: str, node: Tensor) -> None:
        """Every token's activations go to the sums of the experts that it was sent to."""
        experts = int(node.src[0].contents.ne[2])
        values = read_floats(node.src[1], self._kept)[0]  # [tokens, used or 1, columns]
        ids = read_ids(node.src[2], self._copied_ids)  # [tokens, used]
        sums = np.zeros((experts, values.shape[-1]))
        for place in range(ids.shape[1]):
            rows = values[:, place % values.shape[1]]
            for expert in np.unique(ids[:, place]):
                chosen = rows[ids[:, place] == expert]
                sums[expert] += np.einsum("ij,ij->j", chosen, chosen, dtype=np.float32)
        _check_finite(name, sums)
        self._piece.add(name, sums, np.bincount(ids.reshape(-1), minlength=experts).astype(np.int64))


def _weight_name(node: Tensor) -> str:
    """The name of a product's weight: `CUDA0#blk.0.attn_k.weight#0` is `blk.0.attn_k.weight`."""
    raw: Any = node.src[0].contents.name
    parts = raw.decode("utf-8", "replace").split("#")
    return str(parts[1] if len(parts) > 1 else parts[0])


def _check_finite(name: str, sums: NDArray[np.float64]) -> None:
    if not np.isfinite(sums).all():
        channel = int(np.argwhere(~np.isfinite(sums))[0][-1])
        raise NumericError(f"tensor '{name}': NaN or infinity in the activations of input channel {channel}")
