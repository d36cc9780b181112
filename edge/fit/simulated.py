"""Asks llama.cpp itself for a compute buffer, where its graph is not replayed: without weights, without the model.

llama.cpp's planning mode sizes buffers and allocates none; it needs a file with the model's header, so a sparse twin
is written, opened and removed at once. What the buffers mean is left to `edge.fit.memory`.
"""

from __future__ import annotations

import re
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.edge.fit.twin_metadata import twin_metadata
from edgepack.edge.llama.handles import open_context, open_model
from edgepack.edge.llama.interrupt import AbortFlag
from edgepack.edge.llama.loads import ensure_loads
from edgepack.edge.llama.log import runtime_log
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.gguf.reader import read_header
from edgepack.gguf.writer import GGUFWriter

if TYPE_CHECKING:
    from edgepack.edge.fit.memory import MemoryRequest
    from edgepack.gguf.reader import GGUFHeader

_MIB = 2**20


class SimulatedModel:
    """The twin of a model, opened at the first question and kept; not thread-safe.

    Args:
        header: the model's.
        n_vocab: rows of its output matrix.
    """

    def __init__(self, header: GGUFHeader, n_vocab: int) -> None:
        self._header = header
        self._n_vocab = n_vocab
        self._known: dict[MemoryRequest, int] = {}

    def __del__(self) -> None:
        model = self.__dict__.get("_model")
        if model:
            from llama_cpp import llama_cpp as c

            c.llama_model_free(model)

    def compute_bytes(self, request: MemoryRequest) -> int:
        """The compute buffer of one backend, in hundredths of a MiB as llama.cpp's log has it.

        Raises:
            ModelRuntimeError: llama.cpp refuses the model or the request.
        """
        if request not in self._known:
            self._known[request] = self._asked(request)
        return self._known[request]

    def _asked(self, request: MemoryRequest) -> int:
        from llama_cpp import llama_cpp as c

        options = RuntimeOptions(
            n_ctx=request.n_ctx,
            n_batch=request.n_batch,
            n_ubatch=request.n_ubatch,
            threads=1,
            kv_type_k=request.kv_type_k,
            kv_type_v=request.kv_type_v,
            flash_attention="on" if request.flash_attention else "off",
            max_outputs=request.n_outputs,
            simulated=True,
        )
        with runtime_log().recording() as log:
            c.llama_free(open_context(self._header.path, self._model, [], options, AbortFlag()))
        return round(sum(float(size) for size in re.findall(r"compute buffer size = +([\d.]+) MiB", log.text)) * _MIB)

    @cached_property
    def _model(self) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "twin.gguf"
            self._write(path)
            ensure_loads(read_header(path))
            return open_model(path, RuntimeOptions(simulated=True))[0]

    def _write(self, path: Path) -> None:
        """A file of the model's length with its header, without contents and vocabulary."""
        with path.open("wb") as stream:
            writer = GGUFWriter(stream, twin_metadata(self._header, self._n_vocab), list(self._header.tensors))
            writer.write_header()
            stream.truncate(writer.total_bytes)
