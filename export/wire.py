"""A model on low-entropy grids inside an ordinary GGUF: the plan of a wire export, block by block.

Scales are folded, matrices rounded with feedback, blocks kept in a scratch folder until `export.gguf_file` writes
them. How small the result packs, and which scalar makes it fit, is left to `edgepack.pipeline_wire`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.export.rows import ArrayRows
from edgepack.export.wire_folding import input_groups
from edgepack.export.wire_origins import Origins
from edgepack.quant.codecs.ggml import dequantize_rows
from edgepack.quant.codecs.host_grids import F16_STEP_BITS, HOST_OF_TYPE, Host, encode_host
from edgepack.quant.feedback import FeedbackFactor, feedback_factor
from edgepack.quant.targets import Target, find_target
from edgepack.quant.type_choice import Overrides
from edgepack.quant.wire.grid import (
    Lattice,
    Rounded,
    coding_loss,
    column_multiples,
    half,
    ladder,
    round_matrix,
    row_scale,
)

from edgepack.errors import UnsupportedModelError
from edgepack.gguf.types import GGMLType, f32, string
from edgepack.progress import silent

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.plan import ExportPlan, PlannedTensor
    from edgepack.export.wire_folding import InputGroup
    from edgepack.quant.wire.store import CurvatureStore
    from numpy.typing import NDArray

    from edgepack.gguf.types import Value
    from edgepack.model import Checkpoint
    from edgepack.progress import Progress

_ROW_FLOOR = 0.01  # of the mean output curvature, added to each row's
_TABLE_FLOOR = 0.05  # of the mean, for rows of embedding and head: tokens that the calibration text lacks
_EVEN_FLOOR = 0.01  # of the mean square, added to each input's
_FITTING = 0.998  # of a column's weights must fit the host with the column's own step
_SPREADS = (1.0, 1.5, 2.0, 3.0)  # typical multiples to choose from: larger ones follow U_kk better, but reach less far
_MOST_MULTIPLE = 8  # of a column's step where it cannot be folded


@dataclass(frozen=True)
class WireSettings:
    """How matrices are put on grids.

    Attributes:
        host: the container.
        rdo: rate-distortion pull, see `quant.wire.grid.GridRounder`.
        feedback: whether errors are fed back; else H's diagonal alone counts.
        column_steps: whether columns have steps of their own.
        row_steps: whether rows have steps of their own, by the curvature at the outputs.
        allocation: whether matrices have steps by their curvature; else steps are proportional to their weights.
        device: a torch device.
    """

    host: Host
    rdo: float = 0.0
    feedback: bool = True
    column_steps: bool = True
    row_steps: bool = True
    allocation: bool = True
    device: str = "cpu"


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
        weights: how many lie on grids.
        raised_rows: GGUF name → rows whose step was raised to fit the host.
        losses: GGUF name → predicted mean KL divergence a token that its rounding costs, in nats.
    """

    plan: ExportPlan
    weights: int = 0
    raised_rows: dict[str, int] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Predicted mean KL divergence a token, in nats."""
        return sum(self.losses.values())


@dataclass
class _Layer:
    """What is known and changed of one layer while it is rounded."""

    folded_columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    folded_rows: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    factors: dict[str, FeedbackFactor] = field(default_factory=dict)


class WireModel:
    """A checkpoint that can be rounded again and again at different scales; it is only read.

    Args:
        checkpoint: the model.
        curvatures: of its matrices.
        settings: how it is rounded.
        pre: the pre-tokenizer's name where its structure is not known.

    Raises:
        UnsupportedModelError: matrices without a curvature: experts, or what transformers does not run as a linear.
        EdgepackError: as `map_checkpoint`.
    """

    def __init__(
        self, checkpoint: Checkpoint, curvatures: CurvatureStore, settings: WireSettings, *, pre: str | None = None
    ) -> None:
        self.model = map_checkpoint(checkpoint, pre=pre)
        self.curvatures, self.settings = curvatures, settings
        self._origins = Origins(checkpoint)
        self._head = int(checkpoint.config.get("head_dim") or 0) or (
            int(checkpoint.config.get("hidden_size", 0)) // max(1, self.model.facts.n_heads)
        )
        self.base = plan_export(self.model, host_target(settings.host), PlanOptions(Overrides(pure=True)))
        self._planned = {tensor.info.name: tensor for tensor in self.base.tensors}
        self._check()

    @property
    def matrices(self) -> list[PlannedTensor]:
        """The tensors that go onto grids, in file order."""
        return [tensor for tensor in self.base.tensors if self._on_grid(tensor)]

    @property
    def weights(self) -> int:
        """Weights in all of them."""
        return sum(prod(tensor.info.shape) for tensor in self.matrices)

    def _on_grid(self, tensor: PlannedTensor) -> bool:
        return tensor.info.type in HOST_OF_TYPE and len(tensor.info.shape) == 2

    def _check(self) -> None:
        for tensor in self.base.tensors:
            quantised = tensor.info.type is not GGMLType.F32
            known = self._on_grid(tensor) and all(
                name in self.curvatures for name in self._origins.of(tensor.info.name).names
            )
            if quantised and not known:
                raise UnsupportedModelError(
                    f"wire: '{tensor.info.name}' {list(tensor.info.shape)} is not a linear layer's matrix that "
                    "calibration can watch: use a gguf-* target for this model"
                )

    def round(
        self, scale: float, scratch: Path, about: dict[str, Value] | None = None, progress: Progress = silent
    ) -> WireResult:
        """Put every matrix on its grid.

        Args:
            scale: the one scalar: steps are proportional to it, the predicted divergence to its square.
            scratch: a folder for the blocks; what it held of an earlier rounding is replaced.
            about: metadata to add.
            progress: told of each layer.

        Raises:
            NumericError: rows that do not fit the host, or a Hessian that is not positive semi-definite.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        result = WireResult(self.base, self.weights)
        encoded: dict[str, ScratchRows] = {}
        vectors: dict[str, NDArray[np.float32]] = {}
        layers = self._layers()
        with progress("Rounding", len(layers), " layers") as advance:
            for names in layers:
                layer = self._fold(names)
                for group in self._groups(names):
                    self._round_group(group, layer, scale, scratch, result, encoded)
                vectors |= layer.vectors
                advance(1)
        result.plan = self._plan(encoded, vectors, scale, about or {})
        return result

    def _layers(self) -> list[list[str]]:
        """Names of all tensors, by layer; those outside layers first."""
        layers: dict[str, list[str]] = {}
        for tensor in self.base.tensors:
            name = tensor.info.name
            layers.setdefault(name.split(".")[1] if name.startswith("blk.") else "", []).append(name)
        return list(layers.values())

    def _groups(self, names: list[str]) -> list[InputGroup]:
        on_grid = [tensor.info.name for tensor in self.matrices]
        matrices = [name for name in on_grid if name in set(names)]
        return input_groups(names, matrices, self.model.facts, self._head)

    def _fold(self, names: list[str]) -> _Layer:
        """Decide every fold of a layer, before any of its matrices is rounded."""
        layer = _Layer()
        groups = self._groups(names)
        for group in groups:
            hessian = self._hessian(group)
            layer.factors[group.members[0]] = feedback_factor(hessian, name=group.members[0])
            if not self.settings.column_steps:
                continue
            even = _evening(hessian.diagonal().cpu().double().numpy())
            if group.norm is not None:
                self._fold_into_norm(group, even, layer)
            elif group.producer is not None:
                self._fold_into_rows(group, even, layer)
        return layer

    def _fold_into_norm(self, group: InputGroup, wanted: NDArray[np.float64], layer: _Layer) -> None:
        name = f"{group.norm}.weight"
        norm = self._vector(name).astype(np.float64)
        live = norm != 0
        # The folded norm has few significant bits, so that it costs little; the fold is what it then says exactly.
        folded = np.where(live, np.copysign(_on_ladder(np.abs(norm) * wanted), norm), 0.0).astype(np.float32)
        scale = np.where(live, folded / np.where(live, norm, 1.0), 1.0)
        layer.vectors[name] = folded
        bias = f"{group.norm}.bias"
        if bias in self.model.tensors:
            layer.vectors[bias] = (self._vector(bias) * scale).astype(np.float32)
        layer.folded_columns |= dict.fromkeys(group.members, scale)

    def _fold_into_rows(self, group: InputGroup, wanted: NDArray[np.float64], layer: _Layer) -> None:
        assert group.producer is not None
        scale = wanted
        if group.width:
            shared = np.log(wanted).reshape(-1, group.repeats, group.width).mean(1)
            layer.folded_rows[group.producer] = np.exp(shared).reshape(-1)
            scale = np.exp(np.repeat(shared[:, None], group.repeats, axis=1)).reshape(-1)
        else:
            layer.folded_rows[group.producer] = scale
        bias = group.producer.replace(".weight", ".bias")
        if bias in self.model.tensors:
            layer.vectors[bias] = (self._vector(bias) * layer.folded_rows[group.producer]).astype(np.float32)
        layer.folded_columns |= dict.fromkeys(group.members, scale)

    def _vector(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self.model.tensors[name].read(0, 1)[0])

    def _hessian(self, group: InputGroup) -> torch.Tensor:
        name = self._origins.of(group.members[0]).names[0]
        hessian = self.curvatures.inputs(name).to(self.settings.device)
        return hessian if self.settings.feedback else torch.diag(hessian.diagonal())

    def _round_group(
        self,
        group: InputGroup,
        layer: _Layer,
        scale: float,
        scratch: Path,
        result: WireResult,
        encoded: dict[str, ScratchRows],
    ) -> None:
        """Matrices that read one input share its factor and are swept as one."""
        members = [self._planned[name] for name in group.members]
        host, device = HOST_OF_TYPE[members[0].info.type], self.settings.device
        columns = layer.folded_columns.get(group.members[0])
        factor = layer.factors[group.members[0]]
        if columns is not None:
            factor = replace(factor, upper=factor.upper / torch.from_numpy(columns).float().to(device))
        parts = [self._prepared(tensor, layer, columns) for tensor in members]
        weights = torch.cat([weights for weights, _ in parts])
        relative = torch.cat([rows for _, rows in parts]) * scale
        multiples, base = self._multiples(factor.diagonal.cpu().double(), weights / relative[:, None], host)
        weights = weights.to(device)
        lattice = _lattice(host, _host_steps(relative * base, host).to(device), multiples.to(device))
        rounded = round_matrix(weights, factor, lattice, pull=self.settings.rdo)
        raised = (rounded.lattice.factors > lattice.factors).any(1)
        error = (weights - rounded.weights).double().cpu()
        start = 0
        for tensor, (part, row_steps) in zip(members, parts, strict=True):
            name, rows = tensor.info.name, slice(start, start + len(part))
            start += len(part)
            encoded[name] = self._store(tensor, host, rounded, rows, scratch)
            result.losses[name] = _cost(error[rows], factor, row_steps)
            if raised[rows].any():
                result.raised_rows[name] = int(raised[rows].sum())

    def _multiples(self, wanted: torch.Tensor, relative: torch.Tensor, host: Host) -> tuple[torch.Tensor, float]:
        """Multiples of the columns and the factor of all steps, so that nearly all rows fit the host.

        Args:
            wanted: column steps, float64 [in].
            relative: weights over their rows' relative steps [out, in].
            host: with a multiple a column (a coarser column then has fewer integers), or one a group.
        """
        if not self.settings.column_steps:
            wanted = torch.full_like(wanted, float(wanted.log().mean().exp()))
        magnitude = relative.abs()[:: -(-len(relative) // 4096)]
        if host.grouped:
            least = torch.quantile(magnitude / host.reach, _FITTING, dim=0)
            return column_multiples(torch.maximum(wanted, least), host.group, min(_MOST_MULTIPLE, host.max_multiple))
        choices = [column_multiples(wanted, 1, _MOST_MULTIPLE, spread) for spread in _SPREADS]
        largest = magnitude.reshape(len(magnitude), -1, host.group).amax(2).double().reshape(-1) / host.reach
        return min(choices, key=lambda choice: coding_loss(wanted, choice, largest))

    def _prepared(
        self, tensor: PlannedTensor, layer: _Layer, columns: NDArray[np.float64] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Folded weights, float32 [out, in], and relative steps of its rows, float64 [out]."""
        name = tensor.info.name
        weights = self.model.tensors[name].read(0, tensor.info.rows).astype(np.float64)
        rows = layer.folded_rows.get(name)
        if columns is not None:
            weights /= columns
        relative = row_scale(self._outputs(name), _floor(name))
        if not self.settings.allocation:
            relative = relative / relative.log().mean().exp() * float(np.sqrt((weights**2).mean()))
        if rows is not None:
            weights *= rows[:, None]
            relative = ladder(relative * torch.from_numpy(rows))
        return torch.from_numpy(weights.astype(np.float32)), relative

    def _outputs(self, name: str) -> torch.Tensor:
        """Curvature at the outputs [out], in the GGUF's order of rows."""
        origin = self._origins.of(name)
        outputs = torch.from_numpy(origin.gather({n: self.curvatures.outputs(n).numpy() for n in origin.names}))
        return outputs if self.settings.row_steps else torch.full_like(outputs, float(outputs.mean()))

    def _store(self, tensor: PlannedTensor, host: Host, rounded: Rounded, rows: slice, scratch: Path) -> ScratchRows:
        lattice = rounded.lattice.rows(rows)
        steps, factors = lattice.steps.cpu().numpy().astype(np.float16), lattice.factors.cpu().numpy()
        blocks = encode_host(host, steps, rounded.quants[rows].cpu().numpy(), factors)
        path = scratch / f"{tensor.info.name}.rows"
        blocks.tofile(path)
        return ScratchRows(path, host.kind, tensor.info.shape, tensor.rows.dtype)

    def _plan(
        self,
        encoded: dict[str, ScratchRows],
        vectors: dict[str, NDArray[np.float32]],
        scale: float,
        about: dict[str, Value],
    ) -> ExportPlan:
        tensors = []
        for tensor in self.base.tensors:
            name = tensor.info.name
            made = ArrayRows(vectors[name]) if name in vectors else encoded.get(name, tensor.rows)
            tensors.append(replace(tensor, rows=made))
        metadata = dict(self.base.metadata)
        metadata["edgepack.wire.host"] = string(self.settings.host.kind.name)
        metadata["edgepack.wire.scale"] = f32(scale)
        metadata["edgepack.wire.rdo"] = f32(self.settings.rdo)
        return replace(self.base, metadata=metadata | about, tensors=tuple(tensors))


def host_target(host: Host) -> Target:
    """llama.cpp's file type whose default tensor type is the host's."""
    names = {"Q8_0": "q8", "Q6_K": "q6k", "Q5_K": "q5ks", "Q4_K": "q4ks"}
    return find_target(f"gguf-{names[host.kind.name]}")


def _evening(mean_squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales that make all inputs equally large, geometric mean 1.

    llama.cpp rounds activations to 8 bits a block of 32 or 256, by the largest in it: even inputs lose least. What
    the columns' steps then still lack to be proportional to U_kk, small integer multiples give.
    """
    rms = np.sqrt(mean_squares + _EVEN_FLOOR * mean_squares.mean() + 1e-30)
    return np.asarray(np.exp(np.log(rms).mean()) / rms)


def _floor(name: str) -> float:
    return _TABLE_FLOOR if name in ("token_embd.weight", "output.weight") else _ROW_FLOOR


def _on_ladder(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(ladder(torch.from_numpy(np.maximum(values, 1e-30))).numpy())


def _host_steps(steps: torch.Tensor, host: Host) -> torch.Tensor:
    return half(steps.float(), F16_STEP_BITS if host.kind is GGMLType.F16 else 11)


def _lattice(host: Host, steps: torch.Tensor, multiples: torch.Tensor) -> Lattice:
    """A host with multiples of its own holds them as factors; another holds multiples in its integers."""
    rows = len(steps)
    if host.grouped:
        factors, ones = multiples[:: host.group].expand(rows, -1), torch.ones_like(multiples)
        return Lattice(steps, factors, ones, ones * host.reach, host.max_multiple)
    factors = torch.ones(rows, len(multiples) // host.group, dtype=torch.int32, device=steps.device)
    return Lattice(steps, factors, multiples, host.reach // multiples, host.max_multiple)


def _cost(error: torch.Tensor, factor: FeedbackFactor, relative: torch.Tensor) -> float:
    """½ · tr(G E H Eᵀ), the predicted divergence: G from the rows' relative steps, H from its factor."""
    solved = torch.linalg.solve_triangular(factor.upper.double().cpu().T, error.T, upper=False)
    return float(0.5 * (solved.square().sum(0) / relative.double().square()).sum())
