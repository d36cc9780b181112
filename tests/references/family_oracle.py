"""What a family's export is held against: transformers' logits, and the types that llama.cpp's quantiser chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from references.llama_quantize import llama_types
from references.tiny_checkpoints import VOCABULARY

from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def token_ids(count: int = 48) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(3, VOCABULARY, count)


def exported(folder: Path, out: Path) -> Path:
    write_gguf(plan_export(open_model(folder), find_target("f32")), out)
    return out


def llama_logits(path: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    options = RuntimeOptions(n_ctx=256, kv_type_k="f32", kv_type_v="f32", flash_attention="off", threads=1)
    with LoadedModel(path, options) as model:
        return model.logits(ids)


class TableGELU(torch.nn.Module):
    """ggml's GELU: half-precision numbers looked up by half-precision numbers (`ggml_vec_gelu_f32`, vec.h)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().to(x.dtype)
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, y))


def sparse_as_ggml(inputs: torch.Tensor) -> torch.Tensor:
    """Gemma 3n's largest twentieth, by the standard deviation of a sample (`gaussian_topk` of gemma3n.cpp).

    transformers takes that of a population: at the published width of 8192 the two differ by 6e-5 of themselves.
    """
    mean, deviation = inputs.mean(-1, keepdim=True), inputs.std(-1, keepdim=True, unbiased=True)
    return torch.relu(inputs - (mean + 1.6448533535003662 * deviation))


def as_ggml_computes(model: Any) -> Any:
    """The model with ggml's own GELU and sparsity, which no file can change."""
    for module in list(model.modules()):
        if hasattr(module, "_gaussian_topk"):
            module._gaussian_topk = sparse_as_ggml
        for name, child in list(module.named_children()):
            if "GELU" in type(child).__name__:
                setattr(module, name, TableGELU())
    return model


def torch_logits(model: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """In float64, so that what differs is llama.cpp's arithmetic alone."""
    with torch.no_grad():
        logits: NDArray[np.float32] = model.double()(torch.tensor(ids)[None]).logits[0].float().numpy()
    return logits


def error_of(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference of logits, in standard deviations of the expected."""
    return float(np.abs(got - expected).max() / expected.std())


def assert_equal_logits(got: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> None:
    assert got.shape == expected.shape
    assert error_of(got, expected) <= tolerance
    assert np.array_equal(got.argmax(1), expected.argmax(1))


def assert_equal_types(folder: Path, path: Path) -> None:
    """What the configuration says of depth, heads and experts is what llama.cpp reads from the metadata."""
    mapped = open_model(folder)
    for label in ("Q4_K_M", "Q3_K_M", "IQ3_M"):
        target = find_target(label)
        plan = plan_export(mapped, target)
        assert {info.name: info.type.name for info in plan.infos} == llama_types(path, target.file_type)
