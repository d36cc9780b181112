"""Files of every version of the variant decode for ever to the same floats, and as the document says."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from references import slow_decoders

from edgepack.edge.install.native import plan_native, write_native
from edgepack.errors import CodecError
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType
from edgepack.gguf.variant import VERSION, read_variant
from edgepack.quant.codecs import codec
from edgepack.quant.codecs.codec import Encoded
from edgepack.quant.codecs.registry import CODECS, codec_class

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/variant"
DIGESTS = json.loads((GOLDEN / "digests.json").read_text())
DOCUMENT = (ROOT / "packaging/VARIANT.md").read_text()


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_golden_files_decode_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    write_native(plan_native(GOLDEN / name, GGMLType.F32), tmp_path / "plain.gguf")
    assert hashlib.sha256((tmp_path / "plain.gguf").read_bytes()).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_every_codec_decodes_to_the_same_native_bytes_on_every_run_thread_count_and_chunk(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = set()
    for threads, weights in ((1, 1 << 20), (1, 1 << 20), (1, 1), (3, 150), (5, 64)):
        # Chunks of a few rows begin inside blocks, pairs and segments.
        monkeypatch.setattr(codec, "CHUNK_WEIGHTS", weights)
        write_native(plan_native(GOLDEN / name), tmp_path / "plain.gguf", threads=threads)
        results.add((tmp_path / "plain.gguf").read_bytes())
    assert len(results) == 1


@pytest.mark.parametrize(
    ("name", "component", "message"),
    [
        ("v1-seedlm3.gguf", "seeds", "seed 0 is not a state"),
        ("v1-trajectory.gguf", "indices", "index 4095 is beyond 4095 points"),
        ("v1-ternary.gguf", "trits", "expected bytes up to 242, got 255"),
        ("v1-vptq3-residualyes-outliers0.1-normaliserow.gguf", "outlier_columns", "expected ascending columns"),
    ],
)
def test_values_that_no_encoder_writes_are_refused_by_name(
    name: str, component: str, message: str, tmp_path: Path
) -> None:
    header, raw = read_header(GOLDEN / name), bytearray((GOLDEN / name).read_bytes())
    info = next(info for info in header.tensors if info.name.endswith(component))
    start = header.data_start + info.offset
    raw[start : start + info.nbytes] = bytes([0 if component == "seeds" else 255]) * info.nbytes
    hostile, output = tmp_path / "hostile.gguf", tmp_path / "out.gguf"
    hostile.write_bytes(raw)
    tensor = info.name.split(".weight")[0]
    with pytest.raises(CodecError, match=f"hostile.gguf: tensor '{tensor}.weight': .*{message}"):
        write_native(plan_native(hostile), output)
    assert not output.exists()


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_golden_files_decode_as_a_slow_reading_of_the_document(name: str, tmp_path: Path) -> None:
    variant = read_variant(read_header(GOLDEN / name))
    write_native(plan_native(GOLDEN / name, GGMLType.F32), tmp_path / "plain.gguf")
    header = read_header(tmp_path / "plain.gguf")
    for tensor in variant.coded:
        expected = np.zeros(tensor.matrix_shape[0] * tensor.matrix_shape[1])
        for stage in tensor.stages:
            dtypes = {
                GGMLType.I8: "u1",
                GGMLType.I16: "<u2",
                GGMLType.I32: "<i4",
                GGMLType.F16: "<f2",
                GGMLType.F32: "<f4",
            }
            arrays = {
                key: np.fromfile(
                    GOLDEN / name, dtypes[info.type], info.shape[0], offset=variant.header.data_start + info.offset
                )
                for key, info in stage.components.items()
            }
            encoded = Encoded(stage.codec, stage.version, tensor.matrix_shape, stage.parameters, arrays)
            expected += getattr(slow_decoders, stage.codec)(encoded)
        entry = header.tensor(tensor.name)
        got = np.fromfile(tmp_path / "plain.gguf", "<f4", expected.size, offset=header.data_start + entry.offset)
        assert np.allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_every_codec_has_a_golden_file_and_a_chapter() -> None:
    for name in CODECS:
        assert any(f"-{name}" in golden for golden in DIGESTS)
        assert re.search(rf"^## `{name}`, version {codec_class(name).version}$", DOCUMENT, re.MULTILINE)
    assert f"# The GGUF variant, version {VERSION}" in DOCUMENT


def test_the_document_names_every_component_and_parameter() -> None:
    for golden in DIGESTS:
        for tensor in read_variant(read_header(GOLDEN / golden)).coded:
            for stage in tensor.stages:
                chapter = DOCUMENT.split(f"## `{stage.codec}`")[1].split("\n## ")[0]
                for word in (*stage.parameters, *stage.components):
                    assert f"`{word}`" in chapter, f"{stage.codec}: `{word}` is not in VARIANT.md"
