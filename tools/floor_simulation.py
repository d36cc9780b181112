#!/usr/bin/env python3
"""Which rounding of activations costs how much: ggml's blocks of 8 bits simulated in torch, kind by kind of matrix.

    python tools/floor_simulation.py MODEL --text TEXT [--text OTHER] [--chunks 8] [--length 384] [--block 32]

Weights stay exact, or become ggml's Q8_0 in the second half of the table; the last row rounds both, as llama.cpp does
with the whole file. Second halves of chunks are scored against the same model without any rounding.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.edge.fidelity.scorers.torch import CheckpointTokenizer
from edgepack.export.checkpoint import open_checkpoint
from edgepack.gguf.types import GGMLType
from edgepack.quant.calibration.blocks import is_linear, whole_model
from edgepack.quant.passes.awq.rounding import GGMLRounding, rounded_activations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

KINDS = {
    "q, k, v": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "o": ("o_proj",),
    "gate, up": ("gate_proj", "up_proj", "gate_up_proj"),
    "down": ("down_proj",),
    "output matrix": ("lm_head",),
}


def chunks_of(model: Path, texts: list[Path], count: int, length: int) -> torch.Tensor:
    """`count` chunks of `length` tokens, spread over those of all texts: [count, length]."""
    tokenizer, every = CheckpointTokenizer(model), []
    for text in texts:
        tokens = np.asarray(tokenizer.tokenize(text.read_text(encoding="utf-8")), dtype=np.int64)
        every += list(tokens[: len(tokens) // length * length].reshape(-1, length))
    places = np.unique(np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int))
    return torch.from_numpy(np.stack([every[place] for place in places]))


def log_probabilities(model: nn.Module, chunks: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of the second half of each chunk: float32 [tokens, vocabulary]."""
    with torch.no_grad():
        for chunk in chunks:
            yield model(chunk[None]).logits[0, len(chunk) // 2 : -1].float().log_softmax(-1)


def divergence(model: nn.Module, chunks: torch.Tensor, reference: list[torch.Tensor]) -> tuple[float, float]:
    """Mean KL in nats, and the share of equal first choices."""
    kls, same = [], []
    for want, got in zip(reference, log_probabilities(model, chunks), strict=True):
        kls.append(float((want.exp() * (want - got)).sum(-1).mean()))
        same.append(float((want.argmax(-1) == got.argmax(-1)).float().mean()))
    return float(np.mean(kls)), float(np.mean(same))


def linears_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every matrix by its path, the output matrix included."""
    return {name: module for name, module in model.named_modules() if is_linear(module)}


def rounding_inputs(linears: Mapping[str, nn.Module], names: tuple[str, ...], block: int) -> ExitStack:
    """Round what enters the linears called so, until the stack is closed."""
    stack = ExitStack()

    def rounded(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rounded_activations(arguments[0], block), *arguments[1:])

    for name, module in linears.items():
        if name.rpartition(".")[2] in names:
            stack.callback(module.register_forward_pre_hook(rounded).remove)
    return stack


def round_weights(linears: Mapping[str, nn.Module]) -> None:
    """Make every matrix Q8_0, in place; one that is the embedding too changes there as well."""
    for module in linears.values():
        module.weight.data.copy_(GGMLRounding(GGMLType.Q8_0)(module.weight.data, None))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--length", type=int, default=384)
    parser.add_argument("--block", type=int, default=32)
    arguments = parser.parse_args()
    chunks = chunks_of(arguments.model, arguments.text, arguments.chunks, arguments.length)
    model = whole_model(open_checkpoint(arguments.model)).eval()
    linears, reference = linears_of(model), list(log_probabilities(model, chunks))
    every = tuple(name for names in KINDS.values() for name in names)
    print("| what is rounded | mean KL | top-1 |\n|---|---|---|")

    def show(what: str) -> None:
        print("| {} | {:.5f} | {:.4f} |".format(what, *divergence(model, chunks, reference)), flush=True)

    for kind, names in {**KINDS, "all of these": every}.items():
        with rounding_inputs(linears, names, arguments.block):
            show(f"inputs of {kind}")
    round_weights(linears)
    show("weights, to Q8_0")
    with rounding_inputs(linears, every, arguments.block):
        show("weights and inputs")


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
