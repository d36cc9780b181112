"""Phi 3.5 MoE, which llama.cpp converts and runs, but as another function."""

from __future__ import annotations

from edgepack.export.rules.family import Family


def _nothing(_config: object) -> dict[str, object]:
    return {}


FAMILY = Family(
    name="phimoe",
    classes=("PhimoeForCausalLM", "PhiMoEForCausalLM"),
    tensors=(),
    metadata=_nothing,  # type: ignore[arg-type]
    refused=(
        "llama.cpp's graph normalises by the root mean square and weighs experts by softmax,"
        " where the model has LayerNorm and a sparse mixer"
    ),
)
