"""Every error that edgepack raises on purpose, each with the exit code of the command line.

It knows nothing of what raises them. The tree:

    EdgepackError                  70  (never raised itself)
    ├── CheckFailedError            1  a check ran and failed: agreement below the gate, a signature
    │   └── IntegrityError          1  bytes that differ from their digest
    ├── UsageError                  2  wrong options, unknown target, output folder absent, a text that is none
    │   └── RecipeError             2  a recipe with an unknown key or that contradicts itself
    ├── CheckpointError             3  a checkpoint that is missing, truncated or inconsistent
    │   └── AdapterError            3  an adapter that does not belong to the model
    ├── UnsupportedModelError       4  an architecture or a setting that cannot be honoured
    ├── TokenizerError              5  a vocabulary or pre-tokenizer that is not recognised
    ├── GGUFError                   6  a GGUF that is truncated, hostile or inconsistent
    ├── ArchiveError                7  an archive that is truncated, hostile or made by a newer edgepack
    ├── NumericError                8  NaN or infinity where a number must be
    ├── ResourceError               9  not enough disk or memory
    ├── ModelRuntimeError          10  llama.cpp refused or failed
    │   └── TemplateError          10  a chat template that is missing or broken
    ├── DependencyError            11  a package that this command needs is not installed
    ├── CalibrationError           12  calibration text or statistics that cannot be used
    ├── CodecError                 13  a codec, version or component that cannot be decoded
    └── NetworkError               14  a server that cannot be reached, or that answers something else

130 is Ctrl-C, 129 SIGHUP, 143 SIGTERM, as shells have it.
"""

from __future__ import annotations

from typing import ClassVar


class EdgepackError(Exception):
    """Base of all: the text is one line that states the rule and what was got."""

    exit_code: ClassVar[int] = 70


class CheckFailedError(EdgepackError):
    """A check ran to its end and failed."""

    exit_code = 1


class IntegrityError(CheckFailedError):
    """Stored bytes differ from their digest."""


class UsageError(EdgepackError):
    """The command was asked for something that does not exist or contradicts itself."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has an unknown key or contradicts itself; the text begins with the key's path."""


class CheckpointError(EdgepackError):
    """A checkpoint is missing, truncated or inconsistent."""

    exit_code = 3


class AdapterError(CheckpointError):
    """An adapter does not belong to the model or cannot be merged."""


class UnsupportedModelError(EdgepackError):
    """An architecture, or one of its settings, cannot be honoured."""

    exit_code = 4


class TokenizerError(EdgepackError):
    """A vocabulary or pre-tokenizer is not recognised."""

    exit_code = 5


class GGUFError(EdgepackError):
    """A GGUF is truncated, hostile or inconsistent."""

    exit_code = 6


class ArchiveError(EdgepackError):
    """An archive is truncated, hostile or made by a newer edgepack."""

    exit_code = 7


class NumericError(EdgepackError):
    """NaN or infinity stands where a number must be."""

    exit_code = 8


class ResourceError(EdgepackError):
    """Not enough disk or memory."""

    exit_code = 9


class ModelRuntimeError(EdgepackError):
    """llama.cpp refused the model or failed while running it."""

    exit_code = 10


class TemplateError(ModelRuntimeError):
    """A chat template is missing or broken."""


class DependencyError(EdgepackError):
    """A package that this command needs is not installed."""

    exit_code = 11


class CalibrationError(EdgepackError):
    """Calibration text or statistics cannot be used."""

    exit_code = 12


class CodecError(EdgepackError):
    """A codec, its version or a component cannot be decoded."""

    exit_code = 13


class NetworkError(EdgepackError):
    """A server cannot be reached, refuses, or gives other bytes than it should."""

    exit_code = 14
