"""llama.cpp's C functions in whatever is installed: the few that take no struct whose layout changes.

Models are opened by the engines; ggml's own functions are `quant.codecs.ggml.library`'s.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING

from edgepack.errors import DependencyError
from edgepack.quant.codecs.ggml.library import ggml_libraries

if TYPE_CHECKING:
    from pathlib import Path

_NAMES = {"win32": "llama.dll", "darwin": "libllama.dylib"}


class ChatMessage(ctypes.Structure):
    """`struct llama_chat_message` of llama.h."""

    _fields_ = (("role", ctypes.c_char_p), ("content", ctypes.c_char_p))


def llama_library_path(engine: str) -> Path:
    """The library of an installed engine that has llama.cpp's functions.

    Raises:
        DependencyError: the engine is not installed.
    """
    for library in ggml_libraries():
        if library.package == engine:
            is_one_file = engine == "xllamacpp"
            return library.path if is_one_file else library.path.with_name(_NAMES.get(sys.platform, "libllama.so"))
    raise DependencyError(f"the engine {engine} is not installed: pip install {engine}")


@cache
def llama_library() -> ctypes.CDLL:
    """The first installed engine's library, its functions for templates by name declared.

    Raises:
        DependencyError: no engine is installed, or it exports no such function (xllamacpp on Windows).
    """
    problem = "no engine is installed: pip install xllamacpp"
    for found in ggml_libraries():
        try:
            library = ctypes.CDLL(str(llama_library_path(found.package)))
            _declare(library)
        except (OSError, AttributeError) as error:
            problem = f"{found.package} has no function for chat templates by name: {error}"
            continue
        return library
    raise DependencyError(problem)


def _declare(library: ctypes.CDLL) -> None:
    names = ctypes.POINTER(ctypes.c_char_p)
    library.llama_chat_builtin_templates.restype = ctypes.c_int32
    library.llama_chat_builtin_templates.argtypes = [names, ctypes.c_size_t]
    library.llama_chat_apply_template.restype = ctypes.c_int32
    library.llama_chat_apply_template.argtypes = [
        ctypes.c_char_p, ctypes.POINTER(ChatMessage), ctypes.c_size_t, ctypes.c_bool, ctypes.c_char_p, ctypes.c_int32,
    ]  # fmt: skip
