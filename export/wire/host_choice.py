"""Which host every matrix gets in a file that must keep to a memory: what each would cost, on a sample of rows.

The choice between offers is `hosts`'.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.export.wire.fold_choice import COARSE, FINE
from edgepack.export.wire.hosts import Offer, allocate, kinds_for
from edgepack.export.wire.layer import FoldedLayer, evening
from edgepack.quant.codecs.ggml.host_grids import HOST_OF_TYPE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.wire.folding import InputGroup
    from edgepack.export.wire.grid import GridChooser
    from edgepack.export.wire.groups import MatrixGroups
    from edgepack.export.wire.rounding import WireSettings
    from edgepack.gguf.types import GGMLType, Value

GGUF_ALIGNMENT = 32  # of a tensor: its padding is less


@dataclass(frozen=True)
class HostChoice:
    """Chooses hosts within a memory.

    Attributes:
        groups: the matrices.
        grids: says what rounding costs.
        settings: how the model is rounded, and the memory.
    """

    groups: MatrixGroups
    grids: GridChooser
    settings: WireSettings

    def choose(self, scale: float, about: Mapping[str, Value]) -> dict[str, GGMLType]:
        """Hosts of all matrices with which the file keeps to its memory.

        Raises:
            UsageError: it is larger even with the smallest; the text says how large.
        """
        members, offers = [], []
        for names in self.groups.layers().values():
            for group in self.groups.of(names):
                members.append(group.members)
                offers.append(self._offers(group, scale))
        matrices = sum(tensor.info.nbytes for tensor in self.groups.matrices)
        whole = replace(self.groups.plan, metadata={**self.groups.plan.metadata, **about}).total_bytes
        fixed = whole - matrices + GGUF_ALIGNMENT * len(self.groups.matrices)
        least = fixed + sum(min(offer.bytes for offer in group) for group in offers)
        if least > self.settings.memory:
            raise UsageError(
                f"--max-memory: expected at least {least} bytes, the least that this model takes on the device, got"
                f" {self.settings.memory}"
            )
        chosen = allocate(offers, self.settings.memory - fixed)
        return {name: offer.kind for names, offer in zip(members, chosen, strict=True) for name in names}

    def _offers(self, group: InputGroup, scale: float) -> list[Offer]:
        stack = self.groups.stack(group, FoldedLayer())
        own, weights = stack.members[0].info.type, stack.rows * stack.width
        sample = self.groups.fold_sample(group, stack, evening(self.groups.squares(group)))
        grids = self.groups.grid_sample(group, stack)
        folds = self.settings.column_steps and (group.norm is not None or group.producer is not None)
        found = []
        for kind in kinds_for(stack.width) or (own,):
            host = HOST_OF_TYPE[kind]
            strength = FINE if host.reach > 31 else COARSE
            folded = grids.folded(sample.scales(strength)) if folds else grids
            cost = self.grids.cost(folded, host, scale)
            cost += sample.activations(strength, host, scale) if folds else 0.0
            found.append(Offer(kind, stack.rows * kind.row_bytes(stack.width), weights * cost))
        return found
