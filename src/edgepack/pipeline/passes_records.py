"""What a recipe leaves in a GGUF: where its tensors came from, their importance, and the metadata of its passes.

Running passes is `pipeline.passes`'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.gguf.types import Value, ValueType, boolean, f32, string

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgepack.export.mapped_model import MappedModel
    from edgepack.export.rows import Rows
    from edgepack.pipeline.recipe import Recipe
    from edgepack.quant.calibration.collect import Calibration
    from edgepack.quant.passes.run import Figure


def source_names(rows: Rows) -> set[str]:
    """The checkpoint's tensors that a GGUF tensor is made of."""
    name = getattr(rows, "name", None)
    if isinstance(name, str):
        return {name}
    parts = getattr(rows, "parts", None) or [getattr(rows, "base", None)]
    return set().union(*(source_names(part) for part in parts if part is not None))


def importance_by_gguf_name(calibration: Calibration, mapped: MappedModel) -> dict[str, NDArray[np.float32]]:
    """E[x²] of every GGUF matrix whose inputs were measured; joined matrices share their inputs."""
    found = {}
    for name, rows in mapped.tensors.items():
        known = [source for source in sorted(source_names(rows)) if source in calibration.statistics]
        if known and len(rows.shape) == 2:
            importance = calibration.statistics[known[0]].mean_square
            if importance.shape == rows.shape[-1:]:
                found[name] = importance
    return found


def recipe_metadata(recipe: Recipe, figures: Sequence[Mapping[str, Figure]]) -> dict[str, Value]:
    """`edgepack.pipeline.recipe`, and `edgepack.pass.N.KEY` for every figure of pass N (from 0)."""
    metadata = {"edgepack.recipe": string(recipe.text)}
    for number, values in enumerate(figures):
        for key, value in values.items():
            metadata[f"edgepack.pass.{number}.{key}"] = _value(value)
    return metadata


def _value(figure: Figure) -> Value:
    if isinstance(figure, bool):
        return boolean(figure)
    if isinstance(figure, int):
        return Value(ValueType.INT64, figure)
    return f32(figure) if isinstance(figure, float) else string(str(figure))
