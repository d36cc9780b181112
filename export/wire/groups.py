"""The matrices of a wire export by the input that they read: their rows as one stack, and what rounding them stands on.

Which matrices read one input is `folding`'s to say, what is made of them `layer_rounding`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.wire.factors import typical_factor
from edgepack.export.wire.fold_choice import FoldSample
from edgepack.export.wire.folding import input_groups
from edgepack.export.wire.grid import GridSample
from edgepack.export.wire.stack import WireStack
from edgepack.export.wire.steps import RowSteps
from edgepack.quant.codecs.ggml.host_grids import HOST_OF_TYPE

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import ExportPlan, PlannedTensor
    from edgepack.export.wire.curvatures import MatrixCurvatures
    from edgepack.export.wire.drift import Drifted
    from edgepack.export.wire.factors import FactorStore
    from edgepack.export.wire.folding import InputGroup
    from edgepack.export.wire.layer import FoldedLayer
    from edgepack.export.wire.origins import Origins
    from edgepack.export.wire.rounding import WireSettings
    from edgepack.quant.wire.factor import SweepFactor

_FOLD_ROWS = 32  # on which folds and hosts are compared


def goes_on_grid(tensor: PlannedTensor) -> bool:
    """Whether a planned tensor is a matrix, or a stack of experts, in one of the hosts."""
    return tensor.info.type in HOST_OF_TYPE and len(tensor.info.shape) in (2, 3)


class MatrixGroups:
    """A model's matrices, layer by layer and input by input; rows are read when they are asked for.

    Args:
        model: the checkpoint, only read.
        plan: of the file.
        costs: curvature of its matrices.
        origins: where GGUF tensors come from.
        factors: of inputs.
        head: width of an attention head.
        settings: how the model is rounded.

    Attributes:
        plan: may be set to one with other hosts.
        drifted: checkpoint name → what matrices of the layer in hand read in the rounded model; may be set.
    """

    def __init__(
        self,
        model: MappedModel,
        plan: ExportPlan,
        costs: MatrixCurvatures,
        origins: Origins,
        factors: FactorStore,
        head: int,
        settings: WireSettings,
    ) -> None:
        self._model, self._costs, self._origins, self._factors = model, costs, origins, factors
        self._head, self._device = head, settings.device
        self.plan = plan
        self.drifted: dict[str, Drifted] = {}
        self._steps = RowSteps(self.matrices, model.tensors, costs, settings.row_steps, settings.allocation)

    @property
    def plan(self) -> ExportPlan:
        """Of the file."""
        return self._plan

    @plan.setter
    def plan(self, plan: ExportPlan) -> None:
        self._plan = plan
        self._planned = {tensor.info.name: tensor for tensor in plan.tensors}

    @property
    def matrices(self) -> list[PlannedTensor]:
        """The tensors that go onto grids, in file order."""
        return [tensor for tensor in self._plan.tensors if goes_on_grid(tensor)]

    def planned(self, name: str) -> PlannedTensor:
        """A tensor of the plan."""
        return self._planned[name]

    def layers(self) -> dict[int | None, list[str]]:
        """Number of a layer → names of its tensors; those outside layers first, under None."""
        layers: dict[int | None, list[str]] = {None: []}
        for tensor in self._plan.tensors:
            name = tensor.info.name
            layers.setdefault(int(name.split(".")[1]) if name.startswith("blk.") else None, []).append(name)
        return layers

    def of(self, names: list[str]) -> list[InputGroup]:
        """The input groups of a layer's tensors."""
        on_grid = [tensor.info.name for tensor in self.matrices]
        matrices = [name for name in on_grid if name in set(names)]
        return input_groups(names, matrices, self._model.facts, self._head)

    def stack(self, group: InputGroup, layer: FoldedLayer) -> WireStack:
        """The matrices of a group as one, folded as `layer` says."""
        members = [self._planned[name] for name in group.members]
        relative = {tensor.info.name: self._steps.of(tensor) for tensor in members}
        drifted = self._drifts(group)
        mixing = None if drifted is None else drifted.mixing.double().numpy()
        return WireStack(members, self._model.tensors, layer, relative, mixing)

    def factor(self, group: InputGroup, stack: WireStack) -> SweepFactor:
        """Of a group's inputs; of experts what all of them are like, without coefficients."""
        if stack.experts > 1:
            return typical_factor(self.expert_factor(stack, expert) for expert in range(stack.experts))
        return self._factors.get(group.members[0], lambda: self._hessian(group), stack.columns)

    def expert_factor(self, stack: WireStack, expert: int) -> SweepFactor:
        """Of what one expert reads."""
        info = stack.members[0].info
        return self._factors.get(self._costs.inputs_of(info, expert), lambda: self._costs.inputs(info, expert))

    def squares(self, group: InputGroup) -> NDArray[np.float64]:
        """Mean squares of what a group reads, [in]."""
        drifted = self._drifts(group)
        if drifted is None:
            return self._costs.squares(self._planned[group.members[0]].info)
        return np.asarray(drifted.inputs.diagonal().double().numpy())

    def fold_sample(self, group: InputGroup, stack: WireStack, even: NDArray[np.float64]) -> FoldSample:
        """Rows of an unfolded stack, on which folds are compared; `even` are the scales that make its inputs even."""
        return FoldSample(*stack.sample(), even, self.squares(group))

    def grid_sample(self, group: InputGroup, stack: WireStack) -> GridSample:
        """Rows of an unfolded stack, on which grids are compared."""
        return GridSample.of(stack, self.factor(group, stack), _FOLD_ROWS)

    def _hessian(self, group: InputGroup) -> torch.Tensor:
        drifted = self._drifts(group)
        found = self._costs.inputs(self._planned[group.members[0]].info) if drifted is None else drifted.inputs
        return found.to(self._device)

    def _drifts(self, group: InputGroup) -> Drifted | None:
        return self.drifted.get(self._origins.of(group.members[0]).names[0]) if self.drifted else None
