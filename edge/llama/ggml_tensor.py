"""`struct ggml_tensor` of ggml.h for ctypes, with a check that the library that runs has this layout.

Only reading: what is computed from a tensor is left to the caller.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import ModelRuntimeError
from edgepack.quant.codecs.ggml.library import ggml

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_OPERATIONS = 64


class Tensor(ctypes.Structure):
    """One node of a graph; `ne` are sizes and `nb` byte strides, the innermost first."""


# GGML_MAX_DIMS 4, GGML_MAX_OP_PARAMS 64, GGML_MAX_SRC 10, GGML_MAX_NAME 64
Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
)


@cache
def _library() -> ctypes.CDLL:
    library = ggml()
    for name, result, arguments in (
        ("ggml_get_name", ctypes.c_char_p, [ctypes.c_void_p]),
        ("ggml_get_data", ctypes.c_void_p, [ctypes.c_void_p]),
        ("ggml_nbytes", ctypes.c_size_t, [ctypes.c_void_p]),
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, [ctypes.c_void_p]),
        ("ggml_backend_tensor_get", None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def operation(name: str) -> int:
    """The number of an operation such as `MUL_MAT` in the library that runs.

    Raises:
        ModelRuntimeError: it has none of that name.
    """
    for number in range(_MAX_OPERATIONS):
        if _library().ggml_op_name(number) == name.encode():
            return number
    raise ModelRuntimeError(f"ggml has no operation {name}")


def check_layout(address: int, tensor: Tensor) -> None:
    """Raise ModelRuntimeError unless the library reads the tensor at `address` as `Tensor` does."""
    library = _library()
    if library.ggml_get_name(address) != tensor.name or library.ggml_get_data(address) != tensor.data:
        raise ModelRuntimeError("this version of ggml lays tensors out differently: importance cannot be collected")


def read_floats(tensor: Any, kept: dict[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
    """The values of a float32 tensor: a view where they lie in host memory, else a copy.

    Args:
        tensor: a pointer to `Tensor`.
        kept: holds the buffer of copies from call to call.

    Returns:
        float32, shape [ne3, ne2, ne1, ne0], strided as the tensor is.
    """
    fields = tensor.contents
    raw = _raw(tensor, kept)
    view: NDArray[np.float32] = np.lib.stride_tricks.as_strided(
        raw.view(np.float32), shape=tuple(fields.ne)[::-1], strides=tuple(fields.nb)[::-1], writeable=False
    )
    return view


def read_ids(tensor: Any, kept: dict[str, NDArray[np.uint8]]) -> NDArray[np.int32]:
    """The values of a matrix of int32, shape [ne1, ne0]; as `read_floats`."""
    fields = tensor.contents
    raw = _raw(tensor, kept)
    usable = raw[: len(raw) // 4 * 4]
    view: NDArray[np.int32] = np.lib.stride_tricks.as_strided(
        usable.view(np.int32), shape=(fields.ne[1], fields.ne[0]), strides=(fields.nb[1], fields.nb[0]), writeable=False
    )
    return view


def _raw(tensor: Any, kept: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    library = _library()
    fields = tensor.contents
    address = ctypes.cast(tensor, ctypes.c_void_p).value
    count = library.ggml_nbytes(address)
    if fields.buffer and library.ggml_backend_buffer_is_host(fields.buffer):
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(fields.data))
    buffer = kept.get("copy")
    if buffer is None or buffer.nbytes < count:
        buffer = kept["copy"] = np.empty(count, dtype=np.uint8)
    library.ggml_backend_tensor_get(address, buffer.ctypes.data, 0, count)
    return buffer[:count]
