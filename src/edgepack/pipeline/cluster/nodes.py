"""Whether every node would make the same bytes: its versions, its arithmetic, the files that it sees.

It looks and compares; asking the nodes is `opening`'s.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CheckpointError, DependencyError, EdgepackError, UsageError
from edgepack.gguf.types import GGMLType
from edgepack.pipeline.cluster.worker import node_name
from edgepack.quant.codecs.ggml.codec import quantize_rows
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepack.files.remote import RemoteFile

_PACKAGES = ("llama-cpp-python", "numpy", "torch", "transformers", "gguf")
_ENCODED = (GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.Q8_0, GGMLType.IQ4_XS)  # a grid search of each kind
_SIDE = 192


@dataclass(frozen=True)
class SeenFile:
    """A file as the asker sees it.

    Attributes:
        path: its place, the same on every node.
        size: its length in bytes.
        content: what it holds, where that is compared; None for weights.
        remote: where it lies, if that is a URL.
    """

    path: Path
    size: int
    content: bytes | None = None
    remote: RemoteFile | None = None


@dataclass(frozen=True)
class Facts:
    """What decides the bytes that a machine makes, and what it sees.

    Attributes:
        node: its name.
        versions: package → version, `absent` where there is none.
        arithmetic: a digest of a small sum, product, factor and of encoded rows: processors with other instructions
            round otherwise.
        missing: a line for each file that is not there or not the same.
    """

    node: str
    versions: Mapping[str, str]
    arithmetic: str
    missing: tuple[str, ...] = ()


def facts(files: Sequence[SeenFile], threads: int) -> Facts:
    """Of this machine.

    Args:
        files: to be looked for.
        threads: that torch computes with.
    """
    versions = {"edgepack": __version__, "Python": ".".join(map(str, sys.version_info[:2]))}
    versions |= {name: _version(name) for name in _PACKAGES}
    missing = tuple(line for file in files if (line := _difference(file)))
    return Facts(node_name(), versions, arithmetic(threads), missing)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _difference(file: SeenFile) -> str:
    try:
        found = file.path.stat().st_size if file.remote is None else file.remote.stat()
        if found != file.size:
            return f"'{file.path}' has {found} bytes there, {file.size} here"
        if file.content is not None and file.path.read_bytes() != file.content:
            return f"'{file.path}' is another file there"
    except OSError as error:
        return f"'{file.path}': {error.strerror}"
    except EdgepackError as error:  # of a URL: no fsspec there, or no way to it
        return str(error)
    return ""


def arithmetic(threads: int) -> str:
    """A digest of what this machine computes, with torch where it is installed; some milliseconds."""
    values = np.random.Generator(np.random.PCG64(0)).standard_normal((_SIDE, 2 * 256)).astype(np.float32)
    digest = hashlib.sha256()
    for kind in _ENCODED:
        digest.update(quantize_rows(kind, values, values[0] ** 2).tobytes())
    if _version("torch") != "absent":
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        matrix = torch.from_numpy(values)
        product = matrix @ matrix.T
        factor = torch.linalg.cholesky(product.double() + _SIDE * torch.eye(_SIDE, dtype=torch.float64))
        for each in (product, matrix.square().sum(0), torch.softmax(product, -1), factor):
            digest.update(each.numpy().tobytes())
    return digest.hexdigest()


def torch_threads() -> int:
    """Threads that torch computes with in this process; 1 where it is not installed."""
    if _version("torch") == "absent":
        return 1
    import torch

    return int(torch.get_num_threads())


def refuse_others(here: Facts, there: Sequence[Facts]) -> None:
    """Refuse nodes that would make other bytes or do not see the files.

    Raises:
        DependencyError: other versions, an absent package, or other arithmetic.
        CheckpointError: the model is not there, or another.
        UsageError: the output's folder is not shared.
    """
    for node in there:
        for name, own in here.versions.items():
            if (found := node.versions.get(name, "absent")) != own:
                raise DependencyError(
                    f"cluster: node '{node.node}' has {name} {found}, this machine {own}: its bytes could differ:"
                    " expected the same on every node"
                )
        if node.missing:
            kind = UsageError if ".probe" in node.missing[0] else CheckpointError
            raise kind(
                f"cluster: node '{node.node}' does not see what this machine sees: {node.missing[0]}: expected model"
                " and output in folders that all nodes share, under the same names"
            )
        if node.arithmetic != here.arithmetic:
            raise DependencyError(
                f"cluster: node '{node.node}' computes other sums than this machine (another kind of processor): its"
                " bytes would differ: expected nodes of one kind"
            )
