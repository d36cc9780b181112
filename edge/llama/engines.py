"""The engines that are installed, and which one runs: the one asked for, else llama-cpp-python, else xllamacpp.

What an engine does with a model is its own module's.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from edgepack.edge.llama.build import system_info
from edgepack.edge.llama.engine import ENGINE_WISHES, EngineFacts, StoppedError
from edgepack.edge.llama.interrupt import AbortFlag, ctrl_c_sets
from edgepack.edge.llama.libraries import llama_library_path
from edgepack.errors import DependencyError, EdgepackError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.edge.llama.engine import Engine, EngineName, EngineWish, OpenModel
    from edgepack.edge.llama.options import RuntimeOptions
    from edgepack.edge.llama.runtime import LoadedModel

COMPRESS_EXTRA = "pip install 'edgepack[compress]'"
_MODULES: dict[EngineName, str] = {"llama-cpp-python": "llama_cpp", "xllamacpp": "xllamacpp"}


@dataclass(frozen=True)
class LlamaCppPython:
    """llama-cpp-python: llama.cpp's functions one by one, so that logits, importance and probes come out of it."""

    name: EngineName = "llama-cpp-python"

    def open(self, path: Path, options: RuntimeOptions, abort: AbortFlag | None = None) -> OpenModel:
        """As `Engine.open`."""
        from edgepack.edge.llama.runtime import LoadedModel

        return LoadedModel(path, options, abort)

    def facts(self) -> EngineFacts:
        """As `Engine.facts`."""
        from importlib.metadata import version

        from llama_cpp import llama_cpp as c

        return EngineFacts(
            self.name,
            version("llama_cpp_python"),
            f"llama.cpp {c.llama_version().decode()}; {system_info(self.name)}",
            _ggml_devices(),
            self.has_gpu(),
            ("one answer at a time", "JSON schemas as grammars: no long repetitions"),
        )

    def has_gpu(self) -> bool:
        """As `Engine.has_gpu`."""
        from llama_cpp import llama_cpp as c

        return bool(c.llama_supports_gpu_offload())


@dataclass(frozen=True)
class Xllamacpp:
    """xllamacpp: llama.cpp's server engine in this process; wheels for every system, no compiler."""

    name: EngineName = "xllamacpp"

    def open(self, path: Path, options: RuntimeOptions, abort: AbortFlag | None = None) -> OpenModel:
        """As `Engine.open`."""
        from edgepack.edge.llama.server_engine.model import ServerModel

        return ServerModel(path, options, abort)

    def facts(self) -> EngineFacts:
        """As `Engine.facts`."""
        from importlib.metadata import version as version_of

        version = version_of("xllamacpp")
        return EngineFacts(
            self.name,
            version,
            f"llama.cpp b{version.rpartition('.')[2]}; {system_info(self.name)}",
            _xllamacpp_devices(),
            self.has_gpu(),
            ("no logits: no validate, imatrix, certify, --prompt-cache, --from-archive, nor fit's measured speed",),
        )

    def has_gpu(self) -> bool:
        """As `Engine.has_gpu`."""
        return any(device != "CPU" for device in _xllamacpp_devices())


_ENGINES: dict[str, Engine] = {engine.name: engine for engine in (LlamaCppPython(), Xllamacpp())}


def installed(name: EngineName) -> bool:
    """Whether the package of an engine is here; it is not imported."""
    return importlib.util.find_spec(_MODULES[name]) is not None


def installed_engines() -> list[Engine]:
    """The engines that are here, the preferred one first."""
    return [engine for engine in _ENGINES.values() if installed(engine.name)]


def choose_engine(wish: EngineWish = "auto") -> Engine:
    """The engine asked for, or for `auto` the preferred one that is installed.

    Raises:
        UsageError: there is no engine of that name.
        DependencyError: it is not installed.
    """
    if wish not in ENGINE_WISHES:
        raise UsageError(f"engine '{wish}': expected one of {', '.join(ENGINE_WISHES)}")
    found = [engine for engine in installed_engines() if wish in ("auto", engine.name)]
    if not found:
        package = "xllamacpp" if wish == "auto" else wish
        raise DependencyError(f"the engine {package} is not installed: pip install {package}")
    return found[0]


def open_model(path: Path, options: RuntimeOptions, abort: AbortFlag | None = None) -> OpenModel:
    """Open a checked GGUF with the engine that `options` ask for.

    Ctrl-C meanwhile is KeyboardInterrupt, at once: alone it would be lost inside a callback of llama.cpp's.

    Raises:
        UsageError, DependencyError: as `choose_engine`.
        ModelRuntimeError: as `Engine.open`; StoppedError where `abort` was set.
    """
    engine, flag, pressed = choose_engine(options.engine), AbortFlag() if abort is None else abort, AbortFlag()
    try:
        with pressed.also(flag.set), ctrl_c_sets(pressed):
            model = engine.open(path, options, flag)
    except StoppedError:
        if pressed:
            raise KeyboardInterrupt from None
        raise
    if pressed:
        model.close()
        raise KeyboardInterrupt
    return model


def require_logits(what: str) -> None:
    """Raise DependencyError, with the command that helps, unless the engine that gives logits is installed."""
    if not installed("llama-cpp-python"):
        raise DependencyError(f"{what} needs the engine llama-cpp-python: {COMPRESS_EXTRA}")


def with_logits(model: OpenModel, what: str) -> LoadedModel:
    """The model where its engine gives logits.

    Raises:
        UsageError: it is another engine's.
    """
    from edgepack.edge.llama.runtime import LoadedModel

    if isinstance(model, LoadedModel):
        return model
    raise UsageError(f"{what} needs the engine llama-cpp-python ({COMPRESS_EXTRA}), got xllamacpp")


def supports_gpu(wish: EngineWish = "auto") -> bool:
    """Whether the engine that would run can put layers on a GPU; False where none is installed."""
    try:
        return choose_engine(wish).has_gpu()
    except EdgepackError:
        return False


@cache
def _xllamacpp_devices() -> tuple[str, ...]:
    import xllamacpp

    return tuple(str(device["name"]) for device in xllamacpp.get_device_info())


@cache
def _ggml_devices() -> tuple[str, ...]:
    """Names of the devices that llama-cpp-python's build computes on."""
    path = llama_library_path("llama-cpp-python")
    ggml = ctypes.CDLL(str(path.with_name(path.name.replace("llama", "ggml"))))
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    found = (ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count()))
    return tuple(ggml.ggml_backend_dev_name(device).decode() for device in found)
