"""What types are predicted to cost matrices, kept in the scratch folder, and what refinement leaves of it.

Sampling rows is `prospects`', the choice among types `model`'s.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgepack.export.refine.prospects import Prospect, fitting, input_costs, quick_loss, read_masses, sample
from edgepack.files.output import atomic_output
from edgepack.gguf.types import GGMLType
from edgepack.quant.codecs.torch_threads import one_thread
from edgepack.quant.refine.kinds import candidates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from edgepack.export.plan import PlannedTensor
    from edgepack.export.refine.matrices import CurvedMatrices
    from edgepack.export.refine.prospects import RowSample
    from edgepack.export.refine.values import RefineSettings
    from edgepack.gguf.types import TensorInfo
    from edgepack.quant.refine.input_rounding import InputRounding

_GAIN_MATRICES, _GAIN_ROWS = 6, 24  # on which refinement is held against plain feedback


class Predictions:
    """Of a model's matrices.

    Args:
        matrices: their curvature.
        inputs: how what they read is rounded, by the checkpoint's names; empty to count no such rounding.
        settings: how the file is refined.
        scratch: what is found is kept there.
    """

    def __init__(
        self,
        matrices: CurvedMatrices,
        inputs: Mapping[str, InputRounding],
        settings: RefineSettings,
        scratch: Path,
    ) -> None:
        self._matrices, self._costs, self._inputs = matrices, matrices.costs, inputs
        self._settings, self._scratch = settings, scratch

    def folder(self) -> Path:
        """Where what is found of every tensor lies; it is made."""
        folder = self._scratch / "predicted"
        folder.mkdir(exist_ok=True)
        return folder

    def of(self, tensor: PlannedTensor) -> tuple[str, Prospect]:
        """A tensor's name, and what every type is predicted to cost it; kept in the scratch folder."""
        path = self._scratch / "predicted" / f"{tensor.info.name}.json"
        if not path.is_file():
            self._predicted(tensor).save(path)
        return tensor.info.name, Prospect.load(path)

    def _predicted(self, tensor: PlannedTensor) -> Prospect:
        outputs = self._costs.outputs(tensor.info).numpy()
        masses = read_masses(tensor, outputs)
        weights = dict.fromkeys(fitting(tensor), 0.0)
        for rows in sample(tensor, outputs, masses.squares):
            for kind, loss in self._quick_losses(tensor.info, rows, weights).items():
                weights[kind] += loss
        joint = self._matrices.joint(tensor.info)
        left = 1.0 if joint is None else self._matrices.row_factor(tensor.info, joint).left
        return Prospect(weights, input_costs(tensor, self._costs, masses.columns, self._inputs), left)

    def _quick_losses(self, info: TensorInfo, rows: RowSample, kinds: Iterable[GGMLType]) -> dict[GGMLType, float]:
        """Of plain feedback, a tenth of the work of refinement."""
        inputs = self._costs.inputs(info, rows.expert)
        factor = self._matrices.factor(info, rows.expert, inputs) if self._settings.feedback else None
        return {kind: quick_loss(rows, kind, inputs, factor) for kind in kinds}

    def gains(self, matrices: Sequence[PlannedTensor], threads: int) -> dict[GGMLType, float]:
        """What refinement leaves of the loss of plain feedback, by type: of a few of `matrices`, spread over the model.

        Kept in the scratch folder: what is asked first stays.
        """
        path = self._scratch / "gains.json"
        if not path.is_file():
            with one_thread(), atomic_output(path) as stream:
                found = self._measured_gains(matrices, threads)
                stream.write(json.dumps({kind.name: gain for kind, gain in found.items()}).encode())
        return {GGMLType[name]: gain for name, gain in json.loads(path.read_text()).items()}

    def _measured_gains(self, tensors: Sequence[PlannedTensor], threads: int) -> dict[GGMLType, float]:
        matrices = [tensor for tensor in tensors if len(tensor.info.shape) == 2]
        chosen = matrices[:: max(1, -(-len(matrices) // _GAIN_MATRICES))] if self._settings.feedback else []
        quick, refined = dict[GGMLType, float](), dict[GGMLType, float]()
        for tensor in chosen:
            info, outputs = tensor.info, self._costs.outputs(tensor.info).numpy()
            (rows,) = sample(tensor, outputs, read_masses(tensor, outputs).squares, _GAIN_ROWS)
            losses = self._quick_losses(info, rows, candidates(info.shape[-1]))
            share = 1 / max(*losses.values(), 1e-30)  # every matrix counts as much as the others
            for kind, loss in losses.items():
                again = self._matrices.round(info, 0, rows.weights, rows.costs, kind, threads).loss
                quick[kind], refined[kind] = quick.get(kind, 0) + share * loss, refined.get(kind, 0) + share * again
        return {kind: min(1.0, refined[kind] / loss) for kind, loss in quick.items() if loss > 0}
