"""Finds and binds ggml's own functions inside the llama-cpp-python package, without importing it.

The functions are exported by `libggml-base` but not bound by llama-cpp-python (ggml.h). What to call them
with is left to `edgepack.quant.codecs.ggml.codec`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import cache
from pathlib import Path

from edgepack.errors import DependencyError

_ROW_CONVERTER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


def library_folder() -> Path:
    """The folder of llama-cpp-python's shared libraries.

    Raises:
        DependencyError: llama-cpp-python is not installed.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise DependencyError("llama-cpp-python is not installed: pip install llama-cpp-python")
    return Path(spec.origin).parent / "lib"


def _library_name() -> str:
    if sys.platform.startswith("win"):
        return "ggml-base.dll"
    return "libggml-base.dylib" if sys.platform.startswith("darwin") else "libggml-base.so"


@cache
def ggml() -> ctypes.CDLL:
    """`libggml-base` with the signatures of the functions that edgepack calls.

    ctypes releases the interpreter's lock around each call, so threads run in parallel.

    Raises:
        DependencyError: the library or one of its functions is missing.
    """
    path = library_folder() / _library_name()
    try:
        library = ctypes.CDLL(str(path))
        _declare(library)
    except (OSError, AttributeError) as error:
        raise DependencyError(f"'{path}' cannot be used: {error}") from error
    return library


def _declare(library: ctypes.CDLL) -> None:
    pointer, i64, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    signatures: dict[str, tuple[object, list[object]]] = {
        "ggml_quantize_chunk": (size, [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]),
        "ggml_quantize_init": (None, [ctypes.c_int]),
        "ggml_quantize_requires_imatrix": (ctypes.c_bool, [ctypes.c_int]),
        "ggml_get_type_traits": (ctypes.POINTER(TypeTraits), [ctypes.c_int]),
        "ggml_validate_row_data": (ctypes.c_bool, [ctypes.c_int, pointer, size]),
        "ggml_bf16_to_fp32_row": (None, [pointer, pointer, i64]),
        "ggml_fp16_to_fp32_row": (None, [pointer, pointer, i64]),
        "ggml_fp32_to_bf16_row": (None, [pointer, pointer, i64]),
        "ggml_fp32_to_fp16_row": (None, [pointer, pointer, i64]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


@cache
def type_traits(number: int) -> TypeTraits:
    """The traits of ggml type `number`."""
    traits: TypeTraits = ggml().ggml_get_type_traits(number).contents
    return traits


def convert_rows(address: int, source: int, target: int, count: int) -> None:
    """Call a `ggml_to_float_t` at `address` on `count` weights from `source` to `target` (both addresses)."""
    _ROW_CONVERTER(address)(source, target, count)
