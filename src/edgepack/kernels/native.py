"""The compiled extension, loaded once, and numpy arrays as its pointers.

What the functions do is left to the modules that call them; those check sizes before they pass a pointer.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edgepack.errors import DependencyError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np

# Equals EDGEPACK_ABI in abi.h; raised with every change of a signature.
ABI = 3
_EXTENSION = "edgepack.kernels._native"
_FLOATS = {"float": "float32", "double": "float64"}
_ALSO = {"uint8": "bool"}


@lru_cache(maxsize=1)
def library() -> Any:
    """The functions that the headers of this folder declare; calls release the interpreter's lock.

    Raises:
        DependencyError: the extension was not built, or belongs to another edgepack.
    """
    try:
        native: Any = importlib.import_module(_EXTENSION)
    except ImportError as error:
        raise DependencyError(f"edgepack's kernels are not built ({error}); install edgepack with pip") from error
    if (got := native.lib.edgepack_abi()) != ABI:
        raise DependencyError(f"edgepack's kernels: expected build {ABI}, got {got}; install edgepack again")
    return native.lib


@lru_cache(maxsize=1)
def _ffi() -> Any:
    return importlib.import_module(_EXTENSION).ffi


def structure(declared: str, **fields: Any) -> Any:
    """A C structure for a pointer parameter of type `declared`, such as `name *`.

    Args:
        declared: as the header spells the parameter.
        fields: of the structure; arrays' pointers come from `pointer`; the arrays must outlive the call.
    """
    return _ffi().new(declared, fields)


def pointer(array: np.ndarray | None, declared: str) -> Any:
    """The first element of `array` as a C pointer of type `declared`, such as `float *`.

    Args:
        array: contiguous (C order), and writable unless the pointer is declared `const`. Must outlive the call.
            None is the null pointer.
        declared: as the header spells the parameter.

    Raises:
        ValueError: the array is not contiguous, of another type, or not writable.
    """
    ffi = _ffi()
    if array is None:
        return ffi.NULL
    if not array.flags.c_contiguous:
        raise ValueError(f"a kernel needs a contiguous array, got strides {array.strides} of shape {array.shape}")
    if (kind := _numpy_type(declared)) is not None and array.dtype.name != kind and array.dtype.name != _ALSO.get(kind):
        raise ValueError(f"a kernel's {declared!r} is an array of {kind}, got {array.dtype.name}")
    if not array.flags.writeable and not declared.startswith("const "):
        raise ValueError(f"a kernel's {declared!r} is written to, got a read-only array")
    return ffi.cast(declared, array.ctypes.data)


def _numpy_type(declared: str) -> str | None:
    """What numpy calls the items behind a pointer, such as float32 of `const float *`; None for structures."""
    item = declared.removeprefix("const ").removesuffix("*").strip()
    return _FLOATS.get(item) or (item[:-2] if item.endswith("_t") else None)


def record(
    name: str, numbers: Mapping[str, float], arrays: Mapping[str, np.ndarray], written: Collection[str] = ()
) -> Any:
    """A pointer to a new structure of the headers, its numbers and pointers set.

    Args:
        name: of the type.
        numbers: field → value.
        arrays: pointer field → contiguous array of the field's type; all must outlive the structure.
        written: the fields whose arrays a function writes to.

    Raises:
        TypeError: an array's items are not as large as those that the field points to.
        ValueError: as `pointer`.
    """
    ffi = _ffi()
    made, fields = ffi.new(f"{name} *"), dict(ffi.typeof(name).fields)
    for field, value in numbers.items():
        setattr(made, field, value)
    for field, array in arrays.items():
        kind = fields[field].type
        if ffi.sizeof(kind.item) != array.itemsize:
            raise TypeError(f"{name}.{field}: expected items of {kind.item.cname}, got {array.dtype}")
        setattr(made, field, pointer(array, ("" if field in written else "const ") + ffi.getctype(kind)))
    return made
