"""llama.cpp's own quantiser, as the reference that exports are held against."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from pathlib import Path


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(_level: int, _text: bytes, _user: object) -> None:
    pass


def llama_quantize(
    source: Path, out: Path, file_type: int, *, pure: bool = False, importance: dict[str, np.ndarray] | None = None
) -> bool:
    """Quantise a GGUF with `llama_model_quantize`; whether it succeeded."""
    llama_cpp.llama_log_set(_silent, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = file_type, 2, pure
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance or {}) + 1))()
    kept = {name.encode(): np.ascontiguousarray(values, np.float32) for name, values in (importance or {}).items()}
    for entry, (name, values) in zip(entries, kept.items(), strict=False):
        entry.name, entry.size = name, values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if importance is not None:
        params.imatrix = entries
    return llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) == 0


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Name → (type, bytes) of every tensor of a GGUF."""
    header = read_header(path)
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    at = header.data_start
    return {t.name: (t.type.name, raw[at + t.offset : at + t.offset + t.nbytes].tobytes()) for t in header.tensors}
