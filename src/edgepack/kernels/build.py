"""How the C files beside this one become the extension `edgepack.kernels._native` (cffi's API mode, stable ABI).

Run by setuptools through setup.py; never imported by edgepack itself. A job is `NAME.c` with `NAME.h`: the
declarations between the two `/* cffi */` marks of the header are what Python sees.
"""

import re
import sys
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).resolve().parent
_HEADERS = sorted(_HERE.glob("*.h"))
_SOURCES = sorted(_HERE.glob("*.c"))
# Neither errno nor floating-point flags are read: without them roots and comparisons vectorise. Pythons are built with
# -fwrapv, under which 32-bit indices are no longer affine: without it the sweep of the wire takes 2/3 of the time.
# No contraction to fused multiply-adds and no reassociation: a result must not depend on the instruction set that a
# clone of a function was compiled for. Loops are written with their lanes side by side, so that they vectorise as is.
_FLAGS = ["/O2", "/std:c11", "/fp:precise"] if sys.platform == "win32" else [
    "-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-wrapv",
]  # fmt: skip


def _declarations(header: Path) -> str:
    """What `header` declares for Python.

    Raises:
        ValueError: the header lacks its pair of `/* cffi */` marks.
    """
    parts = re.split(r"/\* cffi \*/", header.read_text())
    if len(parts) != 3:
        raise ValueError(f"{header.name}: expected two marks '/* cffi */', got {len(parts) - 1}")
    return parts[1]


builder = FFI()
builder.cdef("\n".join(_declarations(header) for header in _HEADERS))
builder.set_source(
    "edgepack.kernels._native",
    "\n".join(f'#include "{header.name}"' for header in _HEADERS),
    sources=[str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path) for path in _SOURCES],
    depends=[str(path) for path in _HEADERS],
    include_dirs=[str(_HERE)],
    extra_compile_args=_FLAGS,
    py_limited_api=True,
)
