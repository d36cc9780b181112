"""Real weights: the bundled model in every block type restores exactly, and close to the entropy of its fields."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack.cli import execute as run
from edgepack.gguf.reader import GGUFHeader, read_header
from edgepack.gguf.types import GGMLType
from edgepack.packaging.archive import open_archive
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore.unpack import unpack_archive

MODEL = Path(__file__).resolve().parents[1] / "data" / "books-llama-6m"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the exported files."""
    return tmp_path_factory.mktemp("bundled")


def export(folder: Path, target: str) -> Path:
    path = folder / f"{target}.gguf"
    if not path.exists():
        assert run(["export", str(MODEL), "--target", f"gguf-{target}", "-o", str(path)]) == 0
    return path


def entropy(symbols: np.ndarray) -> float:
    """Bytes of an ideal order-0 coder."""
    counts = np.bincount(symbols.ravel())
    counts = counts[counts > 0].astype(float)
    return float((counts * (np.log2(counts.sum()) - np.log2(counts))).sum() / 8)


def halves(blocks: np.ndarray, *offsets: int) -> float:
    """16-bit floats at these offsets: entropy of their low and of their high bytes."""
    return sum(entropy(blocks[:, offset + byte]) for offset in offsets for byte in (0, 1))


def scales_and_minima(s: np.ndarray) -> float:
    """ggml's get_scale_min_k4, from its definition."""
    scales = np.concatenate([s[:, :4] & 63, (s[:, 8:] & 15) | (s[:, :4] >> 6 << 4)], axis=1)
    minima = np.concatenate([s[:, 4:8] & 63, (s[:, 8:] >> 4) | (s[:, 4:8] >> 6 << 4)], axis=1)
    return entropy(scales) + entropy(minima)


def bound(kind: GGMLType, blocks: np.ndarray) -> float:
    """Order-0 entropy of every field of the blocks, each weight a symbol; written from the structs of ggml-common.h."""
    if kind is GGMLType.Q4_0:
        return halves(blocks, 0) + entropy(np.stack([blocks[:, 2:] & 15, blocks[:, 2:] >> 4]))
    if kind is GGMLType.Q8_0:
        return halves(blocks, 0) + entropy(blocks[:, 2:])
    if kind is GGMLType.Q4_K:
        quants = np.stack([blocks[:, 16:] & 15, blocks[:, 16:] >> 4])
        return halves(blocks, 0, 2) + scales_and_minima(blocks[:, 4:16]) + entropy(quants)
    if kind is GGMLType.Q5_K:
        quants = np.stack(
            [
                (blocks[:, 48 + 32 * (g // 2) : 80 + 32 * (g // 2)] >> 4 * (g % 2) & 15)
                | (blocks[:, 16:48] >> g & 1) << 4
                for g in range(8)
            ]
        )
        return halves(blocks, 0, 2) + scales_and_minima(blocks[:, 4:16]) + entropy(quants)
    if kind is GGMLType.Q6_K:
        quants = np.stack(
            [
                (blocks[:, 64 * h + 32 * (j % 2) :][:, :32] >> 4 * (j // 2) & 15)
                | (blocks[:, 128 + 32 * h :][:, :32] >> 2 * j & 3) << 4
                for h in range(2)
                for j in range(4)
            ]
        )
        return halves(blocks, 208) + entropy(blocks[:, 192:208]) + entropy(quants)
    if kind is GGMLType.BF16:
        words = blocks.view("<u2")
        return entropy(words >> 7 & 255) + entropy(words & 127 | words >> 8 & 128)
    assert kind is GGMLType.F32
    return float(blocks.nbytes)  # norms only: a rounding error of the whole


def entropy_bound(path: Path, header: GGUFHeader) -> float:
    content, total = np.frombuffer(path.read_bytes(), np.uint8), 0.0
    for kind in {tensor.type for tensor in header.tensors}:
        starts = [(header.data_start + t.offset, t.nbytes) for t in header.tensors if t.type is kind]
        raw = np.concatenate([content[start : start + size] for start, size in starts])
        total += bound(kind, raw.reshape(-1, kind.block_bytes))
    return total


@pytest.mark.parametrize("target", ["q4_0", "q8_0", "q4_k_m", "q5_k_m", "q6_k", "bf16"])
def test_the_archive_is_within_one_percent_of_the_entropy_of_the_fields(exported: Path, target: str) -> None:
    gguf = export(exported, target)
    archive, header = gguf.with_suffix(".edgepack"), read_header(gguf)
    size = pack_archive(gguf, archive).bytes
    with open_archive(archive) as opened:
        first = next(segment.first_chunk for segment in opened.main.segments if segment.entry.name)
        metadata = int(opened.index.chunks["record_bytes"][:first].sum())
    assert size <= 1.01 * (entropy_bound(gguf, header) + metadata)


@pytest.mark.parametrize(
    "target", ["f32", "f16", "q5_0", "q5_1", "q4_1", "q2_k", "q3_k_m", "q5_k_m", "q8_0", "tq1_0", "iq4_nl"]
)
def test_real_tensors_restore_exactly(exported: Path, target: str) -> None:
    gguf = export(exported, target)
    pack_archive(gguf, exported / "a.edgepack")
    unpack_archive(exported / "a.edgepack", exported / "out.gguf")
    assert (exported / "out.gguf").read_bytes() == gguf.read_bytes()
