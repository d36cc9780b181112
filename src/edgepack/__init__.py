"""edgepack: from a Hugging Face checkpoint to one verified file that runs offline.

This package is thin: `export`, `quant`, `packaging` and `edge` are its parts, found beside `src/` in a
checkout and inside the package once installed. It leaves all work to them.
"""

from pathlib import Path

from edgepack.version import __version__

__all__ = ["__version__"]

_here = Path(__file__).resolve().parent
if _here.parent.name == "src":  # a checkout: the parts lie beside src/, not inside this folder
    __path__.append(str(_here.parent.parent))
