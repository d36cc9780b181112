"""Finds and binds ggml's own functions inside the package of an engine, without importing it.

llama-cpp-python ships `libggml-base`, xllamacpp one extension module that exports the same functions (ggml.h); both
quantise to the same bytes (tests/quant/codecs/test_ggml_libraries.py). What to call them with is left to
`edgepack.quant.codecs.ggml.codec`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgepack.errors import DependencyError

_MODULE_PATTERN = "xllamacpp*.pyd" if sys.platform == "win32" else "xllamacpp*.so"
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


@dataclass(frozen=True)
class GgmlLibrary:
    """A shared library that has ggml's functions.

    Attributes:
        package: the distribution that ships it, as pip spells it.
        path: the file.
    """

    package: str
    path: Path


def ggml_libraries() -> list[GgmlLibrary]:
    """Every library that is installed here, the one that is used first."""
    found = [GgmlLibrary("llama-cpp-python", path) for path in _files("llama_cpp", f"lib/{_library_name()}")]
    return found + [GgmlLibrary("xllamacpp", path) for path in _files("xllamacpp", _MODULE_PATTERN)]


def _files(module: str, pattern: str) -> list[Path]:
    """Files of an installed package that is not imported for it; sorted, so that the choice is always the same."""
    spec = importlib.util.find_spec(module)
    return [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob(pattern))


def _library_name() -> str:
    if sys.platform.startswith("win"):
        return "ggml-base.dll"
    return "libggml-base.dylib" if sys.platform.startswith("darwin") else "libggml-base.so"


@cache
def ggml() -> ctypes.CDLL:
    """The first of `ggml_libraries`, with the signatures of the functions that edgepack calls.

    ctypes releases the interpreter's lock around each call, so threads run in parallel.

    Raises:
        DependencyError: no engine is installed, or its library lacks one of the functions.
    """
    found = ggml_libraries()
    if not found:
        raise DependencyError("no engine is installed: pip install xllamacpp")
    return bind(found[0])


@cache
def has_ggml() -> bool:
    """Whether ggml's functions can be called here."""
    try:
        ggml()
    except DependencyError:
        return False
    return True


def bind(library: GgmlLibrary) -> ctypes.CDLL:
    """`library`, opened and declared.

    Raises:
        DependencyError: it cannot be opened, or lacks one of the functions.
    """
    try:
        opened = ctypes.CDLL(str(library.path))
        _declare(opened)
    except (OSError, AttributeError) as error:  # such as xllamacpp's wheel for Windows, which exports nothing
        raise DependencyError(
            f"ggml's functions cannot be called in '{library.path}' ({error}): pip install llama-cpp-python"
        ) from error
    return opened


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
