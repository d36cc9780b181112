"""Low-rank factors as a file of their own: U·S, V and the mean row of every matrix, written and read again.

Layout: a safetensors file with `NAME.us` [out, k], `NAME.v` [k, in] (rows of length 1) and `NAME.mean` [in] where the
mean was taken out, float32, NAME as in the checkpoint; its metadata says how they were made. W ≈ us · v + mean.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import RecipeError
from edgepack.files.output import atomic_output
from edgepack.quant.passes.lowrank.factors import Factors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT = "edgepack lowrank factors 1"
_PARTS = ("us", "v", "mean")


def write_factors(path: Path, factors: Mapping[str, Factors], about: Mapping[str, Any]) -> int:
    """Write factors, whole or not at all; gives the file's bytes.

    Args:
        path: the `.safetensors`.
        factors: checkpoint name → factors.
        about: method, rank, variance …; becomes JSON in the metadata.
    """
    from safetensors.numpy import save

    tensors: dict[str, NDArray[np.float32]] = {}
    for name, found in factors.items():
        lengths = np.linalg.norm(found.right.astype(np.float64), axis=1)
        lengths[lengths == 0] = 1.0
        tensors[f"{name}.us"] = np.ascontiguousarray(found.left * lengths, np.float32)
        tensors[f"{name}.v"] = np.ascontiguousarray(found.right / lengths[:, None], np.float32)
        if found.mean is not None:
            tensors[f"{name}.mean"] = np.ascontiguousarray(found.mean, np.float32)
    ranks = {name: found.rank for name, found in factors.items()}
    raw = save(tensors, metadata={"format": FORMAT, "about": json.dumps(dict(about)), "ranks": json.dumps(ranks)})
    with atomic_output(path) as stream:
        stream.write(raw)
    return len(raw)


def read_factors(path: Path) -> dict[str, Factors]:
    """Checkpoint name → factors of a file that `write_factors` wrote.

    Raises:
        RecipeError: there is no such file, or it is none; the text names the tensor.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise RecipeError(f"--factors '{path}': no such file")
    try:
        with safe_open(str(path), "numpy") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise RecipeError(f"--factors '{path}': expected '{FORMAT}' in its metadata")
            tensors: dict[str, NDArray[np.float32]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RecipeError(f"--factors '{path}': {error}") from None
    names = sorted({name.rpartition(".")[0] for name in tensors})
    if any(name.rpartition(".")[2] not in _PARTS for name in tensors):
        raise RecipeError(f"--factors '{path}': expected tensors that end in .us, .v and .mean")
    return {name: _checked(path, name, *(tensors.get(f"{name}.{part}") for part in _PARTS)) for name in names}


def _checked(
    path: Path,
    name: str,
    left: NDArray[np.float32] | None,
    right: NDArray[np.float32] | None,
    mean: NDArray[np.float32] | None,
) -> Factors:
    where = f"--factors '{path}': '{name}'"
    if left is None or right is None or left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise RecipeError(f"{where}: expected .us [out, k] and .v [k, in]")
    if mean is not None and mean.shape != right.shape[1:]:
        raise RecipeError(f"{where}: .mean: expected {list(right.shape[1:])}, got {list(mean.shape)}")
    if not all(np.isfinite(each).all() for each in (left, right, *([] if mean is None else [mean]))):
        raise RecipeError(f"{where}: NaN or infinity")
    return Factors(left.astype(np.float32), right.astype(np.float32), None if mean is None else mean.astype(np.float32))
