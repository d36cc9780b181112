"""A server on this machine, and archives to fetch from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from file_server import FileServer

from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType, array, string, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.packaging.pack import pack_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    for name in ("EDGEPACK_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def quick_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.edge.fetch.patience._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("edgepack.edge.fetch.patience._LONGEST_PAUSE", 0.002)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer().running() as running:
        yield running


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[..., Path]:
    """An archive of a GGUF with three tensors, in several chunks; other templates and seeds give other versions."""

    def make(name: str = "model.edgepack", template: str = "{{ messages }}", seed: int = 1) -> Path:
        shapes = {"token_embd.weight": (512, 2048), "blk.0.attn_q.weight": (700, 2048), "output.weight": (64, 2048)}
        infos = [TensorInfo(key, shape, GGMLType.F16) for key, shape in shapes.items()]
        metadata: dict[str, Value] = {
            "general.architecture": string("llama"),
            "llama.block_count": u32(1),
            "tokenizer.ggml.tokens": array(ValueType.STRING, [f"token {i}" for i in range(500)]),
            "tokenizer.chat_template": string(template),
        }
        folder = tmp_path / "made" / name
        folder.mkdir(parents=True)
        with (folder / "model.gguf").open("wb") as stream:
            writer = GGUFWriter(stream, metadata, infos)
            writer.write_header()
            for number, info in enumerate(infos):
                rng = np.random.default_rng(seed if number == 1 else 7)
                writer.write(info.name, rng.normal(size=info.nbytes // 2).astype("<f2").tobytes())
            writer.close()
        pack_archive(folder / "model.gguf", folder / name, level=1)
        return folder / name

    return make
