"""Maps of keys and values folded into the projections of a GPT-2, so that stock llama.cpp holds a narrow cache.

Without rope a score is q · K̂ = (q · upᵀ) · z and a head's part of the output (Σ p · z) · up · W, so the maps down go
into the rows that make keys and values, those up into queries and output; means change scores of a query alike, and
the output by a bias. Nothing is lost beside what the maps lose.

llama.cpp's graph of gpt2 (src/models/gpt2.cpp) has one size for heads of queries, keys and values, and wants heads ·
size = width. Its heads may be grouped though: width / k heads of k elements, of which each group of them reads one head
of keys, and those that the model does not have are of zeros. So the cache holds groups · k elements, any k that divides
the width and is not above the model's own head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgepack.errors import GGUFError, UnsupportedModelError, UsageError
from edgepack.files.output import atomic_output
from edgepack.files.source import open_source
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import GGMLType, TensorInfo, u32
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.attention.families import GPT2, layout_of
from edgepack.quant.attention.moments import layer_moments
from edgepack.quant.attention.projector import LearnableProjector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.quant.attention.families import AttentionLayout


@dataclass(frozen=True)
class FoldedHeads:
    """The attention of all layers with k elements a head.

    Attributes:
        tensors: name in the GGUF → float32 values in its shape.
        heads: of queries, those of zeros counted.
        groups: of keys and values.
        rank: k.
        layers: of the model.
    """

    tensors: dict[str, NDArray[np.float32]]
    heads: int
    groups: int
    rank: int
    layers: int

    def bytes_per_token(self, element: int = 2) -> int:
        """Bytes that llama.cpp's cache holds for a token."""
        return 2 * self.layers * self.groups * self.rank * element


def fold_heads(model: Any, tokens: torch.Tensor, *, groups: int, rank: int) -> FoldedHeads:
    """Principal components of keys and values, folded into the projections.

    Args:
        model: transformers' GPT-2.
        tokens: [sequences, length] to calibrate on.
        groups: of neighbouring heads that share components; a divisor of the heads.
        rank: k: a divisor of the width, at most the head size, so that groups divide width / k.

    Raises:
        UnsupportedModelError: another family, or scores that are scaled otherwise.
        UsageError: groups or a rank that the graph cannot hold.
    """
    layout = layout_of(model)
    if type(model).__name__ not in GPT2.classes or not model.config.scale_attn_weights:
        raise UnsupportedModelError(f"{type(model).__name__}: heads are folded in GPT2LMHeadModel with scaled scores")
    if groups < 1 or layout.heads % groups:
        raise UsageError(f"groups: expected a divisor of the {layout.heads} heads, got {groups}")
    if not 1 <= rank <= layout.head or layout.width % rank or layout.width // rank % groups:
        raise UsageError(
            f"k: expected at most the head size {layout.head} and a divisor of the width {layout.width} that leaves "
            f"a multiple of {groups} heads, got {rank}"
        )
    tensors: dict[str, NDArray[np.float32]] = {}
    for index, moments in enumerate(layer_moments(model, layout, tokens, groups, before_rope=True)):
        keys = LearnableProjector.from_moments(moments.keys, rank, moments.key_metric, torch.float64)
        values = LearnableProjector.from_moments(moments.values, rank, moments.value_metric, torch.float64)
        found = _folded_layer(layout.attentions[index], layout, keys, values)
        tensors |= {f"blk.{index}.{name}": tensor.numpy().astype(np.float32) for name, tensor in found}
    return FoldedHeads(tensors, layout.width // rank, groups, rank, len(layout.attentions))


def _folded_layer(
    attention: Any, layout: AttentionLayout, keys: LearnableProjector, values: LearnableProjector
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a layer under llama.cpp's names, in its shapes."""
    width, head, groups, rank = layout.width, layout.head, keys.groups, keys.rank
    each, slots = layout.heads // groups, width // rank // groups
    inputs = torch.cat([attention.c_attn.weight, attention.c_attn.bias[None]]).detach().double().cpu()
    q, k, v = inputs.split(width, dim=1)  # [width + 1, width]: the last row is the bias
    output = attention.c_proj.weight.detach().double().cpu()
    up = keys.up.detach().reshape(groups, rank, each, head)
    asked = torch.einsum("nghd,grhd->nghr", q.reshape(-1, groups, each, head), up) * (rank / head) ** 0.5
    queries = torch.zeros(width + 1, groups, slots, rank, dtype=torch.float64)
    queries[:, :, :each] = asked
    narrow = [
        torch.einsum("ngw,gwr->ngr", _about(states, maps, groups), maps.down.detach())
        for states, maps in ((k, keys), (v, values))
    ]
    fused = torch.cat([queries.flatten(1), *(part.flatten(1) for part in narrow)], dim=1)
    mixed = torch.zeros(groups, slots, rank, width, dtype=torch.float64)
    back = values.up.detach().reshape(groups, rank, each, head)
    mixed[:, :each] = torch.einsum("grhd,ghdn->ghrn", back, output.reshape(groups, each, head, width))
    shift = values.mean.detach().reshape(-1) @ output
    yield "attn_qkv.weight", fused[:-1].T
    yield "attn_qkv.bias", fused[-1]
    yield "attn_output.weight", mixed.reshape(width, width).T
    yield "attn_output.bias", attention.c_proj.bias.detach().double().cpu() + shift


def _about(states: torch.Tensor, maps: LearnableProjector, groups: int) -> torch.Tensor:
    """Rows that make states, [width + 1, groups, width / groups], the maps' mean taken from the bias."""
    found = states.reshape(len(states), groups, -1).clone()
    found[-1] -= maps.mean.detach()
    return found


def write_folded(source: Path, folded: FoldedHeads, out: Path) -> None:
    """A GPT-2's GGUF with folded heads in the place of its own; the other tensors as they are.

    Args:
        source: a float32 GGUF of the same model.
        folded: the heads.
        out: where to.

    Raises:
        GGUFError: `source` is no GPT-2 in float32, or of another depth.
    """
    header = read_header(source)
    if header.get(keys.ARCHITECTURE) != "gpt2" or header.get("gpt2.block_count") != folded.layers:
        raise GGUFError(f"{source}: expected a gpt2 of {folded.layers} layers")
    infos = tuple(_info(header.tensor(info.name), folded) for info in header.tensors)
    sizes = {
        "head_count": folded.heads, "head_count_kv": folded.groups, "key_length": folded.rank,
        "value_length": folded.rank,
    }  # fmt: skip
    metadata = {**header.metadata, **{f"gpt2.attention.{key}": u32(value) for key, value in sizes.items()}}
    with open_source(source) as stream, atomic_output(out) as target:
        writer = GGUFWriter(target, metadata, infos)
        writer.write_header()
        for info in header.tensors:
            if info.name in folded.tensors:
                writer.write(info.name, folded.tensors[info.name].tobytes())
            else:
                stream.seek(header.data_start + info.offset)
                writer.write(info.name, stream.read(info.nbytes))
        writer.close()


def _info(info: TensorInfo, folded: FoldedHeads) -> TensorInfo:
    if info.name not in folded.tensors:
        return info
    if info.type != GGMLType.F32:
        raise GGUFError(f"tensor '{info.name}': expected F32, got {info.type.name}")
    return replace(info, shape=folded.tensors[info.name].shape)
