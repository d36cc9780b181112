"""Origins of all matrices of a checkpoint, each asked for once and refused where the wire cannot follow it.

Which rows they are is `export.row_origin`'s answer; what is done with it is left to `export.wire`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.errors import UnsupportedModelError
from edgepack.export.mapped_model import map_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.row_origin import RowOrigin
    from edgepack.export.rows import Rows
    from edgepack.model import Checkpoint


class Origins:
    """Origins of all matrices of a checkpoint.

    Args:
        checkpoint: only its headers are read.
        pre: the pre-tokenizer's name where its structure is not known.
    """

    def __init__(self, checkpoint: Checkpoint, *, pre: str | None = None) -> None:
        self._known: dict[str, RowOrigin] = {}
        self._tensors: Mapping[str, Rows] = map_checkpoint(checkpoint, pre=pre).tensors

    def of(self, name: str) -> RowOrigin:
        """The origin of GGUF matrix `name`.

        Raises:
            UnsupportedModelError: its rows are not rows of the checkpoint (a transposed or computed matrix).
        """
        if name not in self._known:
            origin = self._tensors[name].origin
            if not origin.is_linear or origin.transposed:
                raise UnsupportedModelError(f"wire: rows of '{name}' are not rows of the checkpoint")
            self._known[name] = origin
        return self._known[name]
