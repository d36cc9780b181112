"""VPTQ's own checkpoints: indices of vectors of output rows, packed with their residual's into 32-bit words.

Layout: https://github.com/microsoft/VPTQ/blob/main/vptq/ops/quant_gemm.py (the torch reading of it). Codebook g serves
`group_size` columns; indices int32 [codebooks, ⌈out / v⌉, words] hold, column by column and least significant bit
first, (residual << b) | main. Outlier columns come first, then `perm` puts all columns back, then scales apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.formats.packed import KeptArrays, RawTensors, expect, read_stored, whole_number
from edgepack.model import TensorSpec, read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

_FLOATS = ("f16", "bf16", "f32")
_MOST_CENTROIDS = 1 << 16
_PARTS = ("indices", "centroids.weight", "res_centroids.weight", "outlier_indices", "outlier_centroids.weight",
          "perm", "weight_scale", "weight_bias")  # fmt: skip


def find_vptq(source: RawTensors, config: Mapping[str, Any]) -> list[VPTQWeight]:
    """Every packed weight of a VPTQ checkpoint.

    Raises:
        UnsupportedModelError: vectors along the input, or indices that are not packed.
        CheckpointError: settings, types or shapes that contradict each other.
    """
    layers = config.get("config_for_layers")
    if not isinstance(layers, dict):
        raise CheckpointError("quantization_config: expected config_for_layers to be an object")
    prefixes = [name.removesuffix(".indices") for name in source.specs if name.endswith(".indices")]
    kept = KeptArrays()
    return [_open(source, prefix, layers.get(prefix), kept) for prefix in prefixes]


def _pair(settings: Mapping[str, Any], prefix: str, key: str) -> tuple[int, int]:
    """(outliers', all others') value of a setting; -1 means there is none."""
    value = settings.get(key)
    if not isinstance(value, list) or len(value) != 2 or any(type(item) is not int for item in value):
        raise CheckpointError(f"quantization_config: layer '{prefix}': expected {key} to be two numbers, got {value!r}")
    return value[0], value[1]


def _open(source: RawTensors, prefix: str, settings: Any, kept: KeptArrays) -> VPTQWeight:
    if not isinstance(settings, dict):
        raise CheckpointError(f"quantization_config: config_for_layers lacks '{prefix}'")
    if settings.get("vector_quant_dim", "out") != "out" or not settings.get("is_indice_packed", True):
        raise UnsupportedModelError(f"layer '{prefix}': expected packed VPTQ indices of vectors along the output")
    outer, inner = whole_number(settings, "out_features"), whole_number(settings, "in_features")
    outlier_vector, vector = _pair(settings, prefix, "vector_lens")
    outlier_centroids, centroids = _pair(settings, prefix, "num_centroids")
    _, residual = _pair(settings, prefix, "num_res_centroids")
    outliers = max(0, settings.get("outlier_size", 0)) if outlier_vector > 0 else 0
    books = whole_number(settings, "group_num")
    plain = inner - outliers
    sizes_fit = min(outer, inner, vector, books, plain) >= 1 and plain % books == 0
    counts_fit = 2 <= centroids <= _MOST_CENTROIDS and residual <= _MOST_CENTROIDS
    if not sizes_fit or not counts_fit:
        raise CheckpointError(f"quantization_config: layer '{prefix}': sizes contradict each other")
    weight = VPTQWeight(
        source, prefix, outer, inner, vector, books, centroids, max(residual, 0), outliers, outlier_vector,
        outlier_centroids, kept,
    )  # fmt: skip
    weight.check()
    return weight


@dataclass(frozen=True)
class VPTQWeight:
    """One weight; the module says what its sizes mean (`residual` and `outliers` are 0 where there are none)."""

    source: RawTensors
    prefix: str
    outer: int
    inner: int
    vector: int
    books: int
    centroids: int
    residual: int
    outliers: int
    outlier_vector: int
    outlier_centroids: int
    kept: KeptArrays

    @property
    def spec(self) -> TensorSpec:
        """The weight as a model sees it."""
        return TensorSpec(f"{self.prefix}.weight", (self.outer, self.inner), "vptq")

    @property
    def parts(self) -> frozenset[str]:
        """The stored tensors."""
        return frozenset(f"{self.prefix}.{part}" for part in _PARTS if f"{self.prefix}.{part}" in self.source.specs)

    @property
    def _group_size(self) -> int:
        return (self.inner - self.outliers) // self.books

    @property
    def _widths(self) -> tuple[int, int]:
        """Bits of a main and of a residual index."""
        return (self.centroids - 1).bit_length(), (self.residual - 1).bit_length() if self.residual else 0

    def check(self) -> None:
        """Hold every stored tensor against the sizes; raises CheckpointError."""
        words = -(-self._group_size * sum(self._widths) // 32)
        expect(self.source, f"{self.prefix}.indices", ("i32",), (self.books, -(-self.outer // self.vector), words))
        self._expect("centroids.weight", (self.books, self.centroids * self.vector))
        if self.residual:
            self._expect("res_centroids.weight", (self.books, self.residual * self.vector))
        if self.outliers:
            groups = -(-self.outer // self.outlier_vector)
            self._expect("outlier_centroids.weight", (1, self.outlier_centroids * self.outlier_vector))
            expect(self.source, f"{self.prefix}.outlier_indices", ("i16", "u16"), (1, groups, self.outliers))
        if self._has("perm"):
            expect(self.source, f"{self.prefix}.perm", ("i16", "u16"), (self.inner,))
        for part in ("weight_scale", "weight_bias"):
            if self._has(part):
                self._expect(part, (self.inner,))

    def _expect(self, part: str, shape: tuple[int, ...]) -> None:
        expect(self.source, f"{self.prefix}.{part}", _FLOATS, shape)

    def _has(self, part: str) -> bool:
        return f"{self.prefix}.{part}" in self.source.specs

    def read_rows(self, start: int, stop: int) -> Matrix:
        """As `PackedWeight.read_rows`."""
        whole: Matrix = self.kept.get(self.prefix, self._load)
        rows: Matrix = whole[start:stop].copy()
        return rows

    def _load(self) -> Matrix:
        """The whole weight: its columns are permuted, so rows share all of the work."""
        columns = [self._book_columns(book) for book in range(self.books)]
        if self.outliers:
            columns.insert(0, self._outlier_columns())
        weight = np.concatenate(columns, axis=1)
        if self._has("perm"):
            perm = read_stored(self.source, f"{self.prefix}.perm").view(np.uint16).astype(np.int64)
            if not np.array_equal(np.sort(perm), np.arange(self.inner)):
                raise CheckpointError(f"tensor '{self.prefix}.perm': expected each of {self.inner} columns once")
            weight = weight[:, np.argsort(perm)]
        if self._has("weight_scale"):
            weight = weight * read_tensor(self.source, f"{self.prefix}.weight_scale")
        if self._has("weight_bias"):
            weight = weight + read_tensor(self.source, f"{self.prefix}.weight_bias")
        return np.ascontiguousarray(weight, dtype=np.float32)

    def _book_columns(self, book: int) -> Matrix:
        """The columns of one codebook, float32 [out, group_size]."""
        main_bits, residual_bits = self._widths
        words = read_stored(self.source, f"{self.prefix}.indices")[book]
        fields = self._fields(words, main_bits + residual_bits)
        weight = self._vectors("centroids.weight", book, fields & ((1 << main_bits) - 1), self.vector)
        if self.residual:
            weight = weight + self._vectors("res_centroids.weight", book, fields >> main_bits, self.vector)
        return weight

    def _fields(self, words: NDArray[np.int32], width: int) -> NDArray[np.int64]:
        """Every index of a codebook, int64 [vectors, group_size], from bits that run on across words."""
        powers = np.int64(1) << np.arange(width)
        fields = np.empty((len(words), self._group_size), dtype=np.int64)
        for row, packed in enumerate(np.ascontiguousarray(words).view(np.uint8)):
            single = np.unpackbits(packed, bitorder="little", count=self._group_size * width)
            fields[row] = single.reshape(self._group_size, width) @ powers
        return fields

    def _outlier_columns(self) -> Matrix:
        index = read_stored(self.source, f"{self.prefix}.outlier_indices")[0].view(np.uint16).astype(np.int64)
        return self._vectors("outlier_centroids.weight", 0, index, self.outlier_vector)

    def _vectors(self, part: str, book: int, index: NDArray[np.int64], vector: int) -> Matrix:
        """Centroids of indices [vectors, columns] as float32 [out, columns]; raises CheckpointError beyond the book."""
        rows = read_tensor(self.source, f"{self.prefix}.{part}")[book].reshape(-1, vector)
        if index.size and int(index.max()) >= len(rows):
            raise CheckpointError(f"tensor '{self.prefix}.{part}': index {int(index.max())} of {len(rows)} centroids")
        return np.asarray(rows[index].transpose(0, 2, 1).reshape(-1, index.shape[1])[: self.outer])
