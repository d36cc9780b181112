"""llama.cpp's own quantiser, as the reference that exports are held against."""

from __future__ import annotations

import ctypes
import re
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from edgepack.edge.llama.log import runtime_log
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.quant.types.choice import Overrides


def llama_quantize(
    source: Path,
    out: Path,
    file_type: int,
    *,
    pure: bool = False,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    overrides: Overrides | None = None,
) -> bool:
    """Quantise a GGUF with `llama_model_quantize`; whether it succeeded.

    Args:
        source: a GGUF of floats.
        out: the new file.
        file_type: `enum llama_ftype`.
        pure: as the tool's `--pure`.
        importance: GGUF tensor name → weights [columns] or [experts, columns].
        overrides: types by hand.
    """
    params = _params(file_type, importance, overrides)
    params.pure = params.pure or pure
    return _quantize(source, out, params)


def llama_types(
    source: Path,
    file_type: int,
    *,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    overrides: Overrides | None = None,
) -> dict[str, str]:
    """Tensor name → type that `llama_model_quantize` would choose, from the log of its dry run.

    It chooses types that need an importance matrix without one too.

    Raises:
        ValueError: llama.cpp refuses.
    """
    params = _params(file_type, importance, overrides)
    params.dry_run = True
    with runtime_log().recording() as log:
        if not _quantize(source, source.with_suffix(".never"), params):
            raise ValueError(log.last_errors())
    found = re.findall(r"\] +(\S+) +- \[.*type = +(\w+), size = .*?MiB(?:.*\((\w+)\))?\n", log.text)
    return {name: (new or old).upper() for name, old, new in found}


def _quantize(source: Path, out: Path, params: llama_cpp.llama_model_quantize_params) -> bool:
    runtime_log()  # keeps llama.cpp's lines off the terminal
    return llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) == 0


def _params(
    file_type: int, importance: Mapping[str, NDArray[np.float32]] | None, overrides: Overrides | None
) -> llama_cpp.llama_model_quantize_params:
    """Parameters that keep alive what they point to."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 2
    if importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        params.kept = []
        for entry, (name, weights) in zip(entries, importance.items(), strict=False):
            flat = np.ascontiguousarray(weights, dtype=np.float32)
            params.kept.append(flat)
            entry.name, entry.size = name.encode(), flat.size
            entry.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if overrides is not None:
        _override(params, overrides)
    return params


def _override(params: llama_cpp.llama_model_quantize_params, overrides: Overrides) -> None:
    params.pure, params.quantize_output_tensor = overrides.pure, not overrides.leave_output
    if overrides.output is not None:
        params.output_tensor_type = int(overrides.output)
    if overrides.embedding is not None:
        params.token_embedding_type = int(overrides.embedding)
    entries = (llama_cpp.llama_model_tensor_override * (len(overrides.patterns) + 1))()
    for entry, (pattern, kind) in zip(entries, overrides.patterns, strict=False):
        entry.pattern, entry.type = pattern.encode(), int(kind)
    params.tt_overrides = entries


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Name → (type, bytes) of every tensor of a GGUF."""
    header = read_header(path)
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    at = header.data_start
    return {t.name: (t.type.name, raw[at + t.offset : at + t.offset + t.nbytes].tobytes()) for t in header.tensors}
