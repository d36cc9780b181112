"""PEFT's LoRA adapters: read, checked against the model, and merged into its rows as they are read.

What a merged adapter means for ties, vocabulary and tokenizer is left to `export.lora.merging`, writing one as a GGUF
of its own to `export.lora.gguf`. Layout: https://github.com/huggingface/peft
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import AdapterError
from edgepack.export.formats.safetensors_file import SafetensorsFile
from edgepack.export.lora.names import AdapterKey, bare, find_tensor, read_keys
from edgepack.export.lora.settings import AdapterSettings, read_settings
from edgepack.model import OverriddenTensors, TensorSpec, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.export.formats.packed import RawTensors
    from edgepack.model import TensorSource

    Matrix = NDArray[np.float32]

_WEIGHTS = "adapter_model.safetensors"
_TORCH_WEIGHTS = "adapter_model.bin"
_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")
_WITH_A_ROW_A_TOKEN = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight [rows, columns]: `down` [rows, rank] · `up` [rank, columns], scale included.

    Attributes:
        down: float32, shape [rows, rank], the scale multiplied in.
        up: float32, shape [rank, columns].
        magnitude: DoRA's row lengths [rows], or None.
    """

    down: Matrix
    up: Matrix
    magnitude: Matrix | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight it belongs to."""
        return self.down.shape[0], self.up.shape[1]


@dataclass(frozen=True)
class TokenRows:
    """Rows of a matrix that stand in place of the model's.

    Attributes:
        indices: which rows; the last of equal ones counts.
        values: float32, shape [len(indices), columns].
    """

    indices: tuple[int, ...]
    values: Matrix


@dataclass(frozen=True)
class Adapter:
    """An adapter under the names of the model's tensors.

    Attributes:
        path: its folder.
        alpha: `lora_alpha`.
        low_rank: tensor name → what is added to it.
        replaced: tensor name → the whole tensor that stands in its place (`modules_to_save`, saved embeddings), to
            which `low_rank` is added where both name it. It may have another number of rows, a row a token.
        rows: tensor name → rows that stand in place (`trainable_token_indices`).
        copies: those of `replaced` that a module of its own holds, even if the base's is tied to another.
        notes: a line for each setting that is passed over.
    """

    path: Path
    alpha: float
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, Matrix]
    rows: Mapping[str, TokenRows] = field(default_factory=dict)
    copies: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> frozenset[str]:
        """Every tensor that it changes."""
        return frozenset(self.low_rank) | frozenset(self.replaced) | frozenset(self.rows)


@dataclass(frozen=True)
class AdaptedTensors:
    """A source with an adapter merged in: a `TensorSource`. Does not modify `base`."""

    base: TensorSource
    adapter: Adapter

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The base's, with the shapes of replaced tensors."""
        whole = self.adapter.replaced
        return {
            name: replace(spec, shape=whole[name].shape) if name in whole else spec
            for name, spec in self.base.specs.items()
        }

    def read_rows(self, name: str, start: int, stop: int) -> Matrix:
        """As `TensorSource.read_rows`, the update added."""
        rows = OverriddenTensors(self.base, self.adapter.replaced).read_rows(name, start, stop)
        update = self.adapter.low_rank.get(name)
        if update is not None:
            rows += update.down[start:stop] @ update.up
            if update.magnitude is not None:
                rows *= (update.magnitude[start:stop] / np.linalg.norm(rows, axis=1))[:, None]
        tokens = self.adapter.rows.get(name)
        if tokens is not None:
            for index, values in zip(tokens.indices, tokens.values, strict=True):
                if start <= index < stop:
                    rows[index - start] = values
        return rows


def read_adapter(folder: Path, model: TensorSource, *, conv1d: bool | None = None) -> Adapter:
    """Read a PEFT LoRA and find the model's tensors that it changes.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        model: the tensors of the model that it was trained on.
        conv1d: whether its layers are GPT-2's, which store weights as [in, out]; None to believe `fan_in_fan_out`, of
            which peft takes no notice where the layers say otherwise.

    Raises:
        AdapterError: not a LoRA, of a kind that cannot be merged, or made for another model.
        CheckpointError: a file that is missing, truncated or hostile.
    """
    settings = read_settings(folder)
    tensors = _open_weights(folder)
    reader = _Reader(settings, tensors, model, read_keys(tensors.specs), conv1d)
    replaced = reader.read_whole()
    low_rank = reader.read_pairs({name: array.shape for name, array in replaced.items()})
    rows = reader.read_tokens({name: array.shape for name, array in replaced.items()})
    copies = reader.own_copies() & replaced.keys()
    # PEFT saves embeddings beside their factors, changed or not
    replaced = {name: array for name, array in replaced.items() if not _is_own(array, model, name)}
    if not low_rank and not replaced and not rows:
        raise AdapterError(f"{folder}: the adapter changes nothing")
    return Adapter(folder, settings.alpha, low_rank, replaced, rows, frozenset(copies), settings.notes)


def _is_own(array: Matrix, model: TensorSource, name: str) -> bool:
    return array.shape == model.specs[name].shape and np.array_equal(array, read_tensor(model, name))


def _open_weights(folder: Path) -> RawTensors:
    if (folder / _WEIGHTS).is_file():
        return SafetensorsFile(folder / _WEIGHTS)
    if (folder / _TORCH_WEIGHTS).is_file():
        from edgepack.export.formats.torch_file import TorchFile

        return TorchFile(folder / _TORCH_WEIGHTS)
    raise AdapterError(f"{folder}: expected {_WEIGHTS}, found none")


@dataclass(frozen=True)
class _Reader:
    """One adapter being read."""

    settings: AdapterSettings
    tensors: RawTensors
    model: TensorSource
    keys: list[AdapterKey]
    conv1d: bool | None

    def is_transposed(self, module: str) -> bool:
        """Whether the module's weight is stored as [in, out]."""
        if self.conv1d is None:
            return self.settings.transposed
        return self.conv1d and module.rpartition(".")[2] in _CONV1D

    def target(self, name: str) -> TensorSpec:
        """The model's tensor that `name` means."""
        found = find_tensor(name, self.model.specs)
        if found is None:
            raise self.settings.error(f"the model has no tensor '{name}': the adapter was made for another model")
        return self.model.specs[found]

    def read_whole(self) -> dict[str, Matrix]:
        """Tensors that stand in place of the model's."""
        found: dict[str, Matrix] = {}
        for key in self.keys:
            if key.kind not in ("saved", "base", "whole"):
                continue
            if ".lora_" in key.stored:
                raise self.settings.error(f"'{key.stored}' is no tensor of a LoRA")
            spec, shape = self.target(key.module), self.tensors.specs[key.stored].shape
            if shape != spec.shape and not _is_resized(key.module, spec.shape, shape):
                raise self._another_model(spec, shape)
            found[spec.name] = read_tensor(self.tensors, key.stored)
        return found

    def own_copies(self) -> frozenset[str]:
        """Tensors of modules that were trained whole, as copies."""
        own = (key for key in self.keys if key.kind in ("saved", "whole"))
        return frozenset(
            self.target(key.module).name
            for key in own
            if key.kind == "saved" or self.settings.saves(key.module.rpartition(".")[0])
        )

    def read_pairs(self, replaced: Mapping[str, tuple[int, ...]]) -> dict[str, LowRank]:
        """Tensor name → what is added to it."""
        pairs: dict[str, dict[str, str]] = {}
        for key in self.keys:
            if key.kind not in ("saved", "base", "whole", "tokens"):
                pairs.setdefault(key.module, {})[key.kind] = key.stored
        return dict(self._read_pair(module, parts, replaced) for module, parts in pairs.items())

    def _read_pair(
        self, module: str, parts: Mapping[str, str], replaced: Mapping[str, tuple[int, ...]]
    ) -> tuple[str, LowRank]:
        if parts.keys() - {"magnitude"} not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
            raise self.settings.error(f"module '{module}': expected lora_A and lora_B, got {sorted(parts)}")
        embedding = "embedding_A" in parts
        first, second = (read_tensor(self.tensors, parts[f"embedding_{p}" if embedding else p]) for p in ("A", "B"))
        if first.ndim != 2 or second.ndim != 2 or not first.shape[0] or first.shape[0] != second.shape[1]:
            shapes = f"{list(first.shape)} and {list(second.shape)}"
            raise self.settings.error(f"module '{module}': expected [rank, in] and [out, rank], got {shapes}")
        spec = self.target(f"{module}.weight")
        transposed = embedding or self.is_transposed(module)
        down, up = (first.T, second.T) if transposed else (second, first)
        shape = (down.shape[0], up.shape[1])
        if shape != replaced.get(spec.name, spec.shape):
            raise self._another_model(spec, shape)
        scale = self.settings.scale(module, first.shape[0])
        magnitude = self._magnitude(parts.get("magnitude"), down.shape[0], transposed=transposed)
        return spec.name, LowRank(np.ascontiguousarray(down * np.float32(scale)), up, magnitude)

    def read_tokens(self, replaced: Mapping[str, tuple[int, ...]]) -> dict[str, TokenRows]:
        """Tensor name → the rows of single tokens."""
        found: dict[str, TokenRows] = {}
        for key in self.keys:
            if key.kind != "tokens":
                continue
            spec, indices = self.target(f"{key.module}.weight"), self.settings.token_indices(key.module)
            values, shape = read_tensor(self.tensors, key.stored), replaced.get(spec.name, spec.shape)
            if values.shape != (len(indices), *shape[1:]) or any(index >= shape[0] for index in indices):
                raise self.settings.error(
                    f"'{key.stored}': expected a row of {shape[-1]} for each of {len(indices)} tokens below {shape[0]},"
                    f" got {list(values.shape)}"
                )
            found[spec.name] = TokenRows(tuple(indices), values)
        return found

    def _another_model(self, spec: TensorSpec, got: tuple[int, ...]) -> AdapterError:
        shapes = f"tensor '{spec.name}' is {list(spec.shape)}, the adapter's is {list(got)}"
        if _is_resized(spec.name.rpartition(".")[0], spec.shape, got):
            return self.settings.error(f"{shapes}: tokens were added in training, and the adapter lacks their rows")
        return self.settings.error(f"{shapes}: it was made for another model")

    def _magnitude(self, name: str | None, rows: int, *, transposed: bool) -> Matrix | None:
        if name is None:
            return None
        if transposed:
            raise self.settings.error(f"'{name}': use_dora of a transposed weight cannot be merged: merge with peft")
        lengths = read_tensor(self.tensors, name).reshape(-1)
        if lengths.shape != (rows,):
            raise self.settings.error(f"'{name}': expected the lengths of {rows} rows, got {list(lengths.shape)}")
        return lengths


def _is_resized(module: str, own: tuple[int, ...], got: tuple[int, ...]) -> bool:
    """Whether two shapes differ only in how many tokens there are."""
    last = bare(module).removesuffix(".weight").rpartition(".")[2]
    return last in _WITH_A_ROW_A_TOKEN and len(own) == len(got) == 2 and own[1] == got[1] and own[0] != got[0]
