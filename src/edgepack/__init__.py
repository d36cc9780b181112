"""edgepack: from a Hugging Face checkpoint to one verified file that runs offline.

This package is thin: `export`, `quant`, `packaging` and `edge` are its parts, found beside `src/` in a
checkout and inside the package once installed. It leaves all work to them. The Python API (docs/api.md) is
reached through this module: a name is imported from `edgepack.api` when it is asked for, so that `import edgepack`
loads neither numpy nor anything heavier.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from inspect import Signature

    from edgepack import errors, progress
    from edgepack.api.analysis import analyze, architecture_of
    from edgepack.api.archives import estimate_pack, pack
    from edgepack.api.bundling import bundle
    from edgepack.api.caches import kv
    from edgepack.api.checking import generate_key, inspect, sign, verify
    from edgepack.api.checkpoint import checkpoint
    from edgepack.api.compress import compress
    from edgepack.api.confidence import calibrate
    from edgepack.api.embedders import validate_embeddings
    from edgepack.api.export import export
    from edgepack.api.extracting import extract
    from edgepack.api.fetching import fetch, update
    from edgepack.api.fidelity import certify, compare, evaluate, replay, validate
    from edgepack.api.frontier import frontier
    from edgepack.api.importance import imatrix
    from edgepack.api.loading import load
    from edgepack.api.model import Model
    from edgepack.api.provenance import check_provenance, provenance, reproduce
    from edgepack.api.publishing import release
    from edgepack.api.recover import recover
    from edgepack.api.speed import bench, fit
    from edgepack.api.teach import teach
    from edgepack.api.tuning import tune
    from edgepack.api.unpacking import unpack, unpack_native
    from edgepack.api.updates import diff, patch
    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.edge.llama.options import Adapter, SamplingOptions

# name → the module below edgepack that defines it; "" is a module of that name.
_NAMES = {
    "Adapter": "edge.llama.options",
    "Model": "api.model",
    "SamplingOptions": "edge.llama.options",
    "ScoringOptions": "edge.fidelity.scoring",
    "analyze": "api.analysis",
    "architecture_of": "api.analysis",
    "bench": "api.speed",
    "bundle": "api.bundling",
    "calibrate": "api.confidence",
    "certify": "api.fidelity",
    "check_provenance": "api.provenance",
    "checkpoint": "api.checkpoint",
    "compare": "api.fidelity",
    "compress": "api.compress",
    "diff": "api.updates",
    "errors": "",
    "estimate_pack": "api.archives",
    "evaluate": "api.fidelity",
    "export": "api.export",
    "extract": "api.extracting",
    "fetch": "api.fetching",
    "fit": "api.speed",
    "frontier": "api.frontier",
    "generate_key": "api.checking",
    "imatrix": "api.importance",
    "inspect": "api.checking",
    "kv": "api.caches",
    "load": "api.loading",
    "pack": "api.archives",
    "patch": "api.updates",
    "progress": "",
    "provenance": "api.provenance",
    "recover": "api.recover",
    "release": "api.publishing",
    "replay": "api.fidelity",
    "reproduce": "api.provenance",
    "sign": "api.checking",
    "teach": "api.teach",
    "tune": "api.tuning",
    "unpack": "api.unpacking",
    "unpack_native": "api.unpacking",
    "update": "api.fetching",
    "validate": "api.fidelity",
    "validate_embeddings": "api.embedders",
    "verify": "api.checking",
}
__all__ = [
    "Adapter",
    "Model",
    "SamplingOptions",
    "ScoringOptions",
    "__version__",
    "analyze",
    "architecture_of",
    "bench",
    "bundle",
    "calibrate",
    "certify",
    "check_provenance",
    "checkpoint",
    "compare",
    "compress",
    "diff",
    "errors",
    "estimate_pack",
    "evaluate",
    "export",
    "extract",
    "fetch",
    "fit",
    "frontier",
    "generate_key",
    "imatrix",
    "inspect",
    "kv",
    "load",
    "pack",
    "patch",
    "progress",
    "provenance",
    "recover",
    "release",
    "replay",
    "reproduce",
    "sign",
    "teach",
    "tune",
    "unpack",
    "unpack_native",
    "update",
    "validate",
    "validate_embeddings",
    "verify",
]

_here = Path(__file__).resolve().parent
if _here.parent.name == "src":  # a checkout: the parts lie beside src/, not inside this folder
    __path__.append(str(_here.parent.parent))


def __getattr__(name: str) -> object:
    """A name of the API, imported when it is first asked for."""
    if name not in _NAMES:
        raise AttributeError(f"module 'edgepack' has no attribute '{name}'")
    if not _NAMES[name]:
        return import_module(f"edgepack.{name}")
    if name in _FUNCTIONS_TOO:
        return import_module(f"edgepack.{name}")  # the part, which can be called
    return _defined(name)


def __dir__() -> list[str]:
    """Every public name, loaded or not."""
    return sorted({*globals(), *__all__})


def _defined(name: str) -> Callable[..., object]:
    found: Callable[..., object] = getattr(import_module(f"edgepack.{_NAMES[name]}"), name)
    return found


# Parts whose name is also a function of the API: importing `edgepack.export.config` makes the folder `export` an
# attribute of this package, so the folder's module itself has to be what `edgepack.export(...)` calls.
_FUNCTIONS_TOO = frozenset(name for name in ("export",) if name in _NAMES)


class _CallablePart(ModuleType):
    """A part that is also the API's function of its name."""

    def __call__(self, *arguments: object, **options: object) -> object:
        return _defined(self.__name__.rpartition(".")[2])(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        from inspect import signature

        return signature(_defined(self.__name__.rpartition(".")[2]))

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return _defined(self.__name__.rpartition(".")[2]).__doc__


class _Package(ModuleType):
    """This package: parts become callable as the import system hangs them in."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _FUNCTIONS_TOO and isinstance(value, ModuleType):
            value.__class__ = _CallablePart
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
