"""What a model is before anything is made of it: its shape, where its parameters lie, what it would take as a file.

Mapping and planning are `export`'s, memory is `edge.fit`'s; no weight is read.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.edge.fit.memory import MemoryRequest, plan_memory
from edgepack.edge.fit.shape import read_shape
from edgepack.errors import EdgepackError
from edgepack.export.mapped_model import map_checkpoint, open_model
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.writer import GGUFWriter
from edgepack.quant.types.choice import Overrides
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgepack.edge.fit.shape import ModelShape
    from edgepack.export.mapped import MappedModel
    from edgepack.model import Checkpoint
    from edgepack.pipeline.outline import Json

TARGETS = ("f16", "q8", "q6k", "q5km", "q4km", "q3km", "q2k")
_WEIGHTS = "q4km"  # the type whose weights stand in the table of memory
_FIRST_CONTEXT, _MOST_CONTEXTS = 512, 9
_PARTS = (
    ("embeddings", re.compile(r"(token_embd|position_embd|token_types|per_layer_token_embd)\b")),
    ("head", re.compile(r"(output\.|cls|dense_)")),
    ("norms", re.compile(r".*norm")),
    ("experts", re.compile(r".*_exps\.|.*ffn_gate_inp")),
    ("attention", re.compile(r"blk\.\d+\.attn_")),
    ("feed-forward", re.compile(r"blk\.\d+\.(ffn_|layer_output)")),
    ("recurrent", re.compile(r"blk\.\d+\.(ssm_|shortconv|time_mix|channel_mix)")),
)


@dataclass(frozen=True)
class ContextMemory:
    """Bytes at a context, every layer on one device: KV cache in F16, and all with weights of Q4_K_M."""

    ctx: int
    kv: int
    total: int


@dataclass(frozen=True)
class TargetSize:
    """Bytes of a file of a target, exact, and bits a weight."""

    target: str
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Architecture:
    """A model's shape.

    Attributes:
        architecture: llama.cpp's name of the family.
        name: of the model.
        kind: `decoder`, `hybrid` (some layers keep a state instead of a cache), `recurrent` or `encoder`.
        hidden_size, layers, heads, kv_heads, vocabulary: of the header; heads of the layer that has the most.
        feed_forward: inner width, of the widest layer.
        experts, experts_used: 0 for a dense model.
        context: tokens of training.
        parameters: weights of all tensors.
        parts: part → parameters; they add up.
        memory: by context length; empty where it cannot be predicted, and `memory_note` says why.
        targets: usual targets, from large to small.
        notes: limits of the source, a line each.
    """

    architecture: str
    name: str
    kind: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    feed_forward: int
    experts: int
    experts_used: int
    context: int
    parameters: int
    parts: Mapping[str, int]
    memory: tuple[ContextMemory, ...]
    memory_note: str
    targets: tuple[TargetSize, ...]
    notes: tuple[str, ...]

    def json(self) -> dict[str, Json]:
        """The object that `edgepack analyze --architecture --json` prints."""
        return {**asdict(self), "parts": dict(self.parts)}


def read_architecture(model: Path, located: Checkpoint | None = None) -> Architecture:
    """The architecture of a Hugging Face folder or a GGUF; raises as `export.mapped_model.open_model`.

    `located` is a model at a URL, whose small files lie in the folder.
    """
    if located is None:
        mapped = open_model(model, allow_requantize=True)
    else:
        mapped = map_checkpoint(located, allow_requantize=True)
    family = str(mapped.metadata[keys.ARCHITECTURE].value)
    counts = {name: prod(rows.shape) for name, rows in mapped.tensors.items()}
    shape, memory, note = _memory(mapped)
    embedding = mapped.tensors.get("token_embd.weight")
    named = mapped.metadata.get(keys.NAME)
    return Architecture(
        architecture=family,
        name=str(named.value) if named is not None else model.name,
        kind=_kind(mapped, family),
        hidden_size=_number(mapped, f"{family}.embedding_length"),
        layers=_number(mapped, f"{family}.block_count"),
        heads=_number(mapped, f"{family}.attention.head_count"),
        kv_heads=_number(mapped, f"{family}.attention.head_count_kv")
        or _number(mapped, f"{family}.attention.head_count"),
        vocabulary=embedding.shape[0] if embedding is not None else 0,
        feed_forward=_number(mapped, f"{family}.feed_forward_length")
        or (max((layer.feed_forward for layer in shape.layers), default=0) if shape else 0),
        experts=_number(mapped, f"{family}.expert_count"),
        experts_used=_number(mapped, f"{family}.expert_used_count"),
        context=_number(mapped, f"{family}.context_length"),
        parameters=sum(counts.values()),
        parts=_parts(counts),
        memory=memory,
        memory_note=note,
        targets=tuple(_targets(mapped, sum(counts.values()))),
        notes=mapped.notes,
    )


def _number(mapped: MappedModel, key: str) -> int:
    """A whole number of the metadata, the largest of a list with one a layer; 0 where there is none."""
    value = mapped.metadata[key].value if key in mapped.metadata else 0
    values = value if isinstance(value, list) else [value]
    return max((each for each in values if isinstance(each, int)), default=0)


def _parts(counts: Mapping[str, int]) -> dict[str, int]:
    """Part → parameters, the largest first."""
    found: dict[str, int] = {}
    for name, count in counts.items():
        part = next((part for part, pattern in _PARTS if pattern.match(name)), "other")
        found[part] = found.get(part, 0) + count
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _kind(mapped: MappedModel, family: str) -> str:
    causal = mapped.metadata.get(f"{family}.attention.causal")
    if causal is not None and causal.value is False:
        return "encoder"
    layers = {name.split(".")[1] for name in mapped.tensors if name.startswith("blk.")}
    stateful = {
        name.split(".")[1]
        for name in mapped.tensors
        if re.match(r"blk\.\d+\.(ssm_conv1d|shortconv\.conv|time_mix_)", name)
    }
    if not stateful:
        return "decoder"
    attending = {name.split(".")[1] for name in mapped.tensors if re.match(r"blk\.\d+\.attn_(q|qkv)\.", name)}
    return "recurrent" if stateful == layers and not attending else "hybrid"


def _memory(mapped: MappedModel) -> tuple[ModelShape | None, tuple[ContextMemory, ...], str]:
    """(the shape, memory by context, nothing) or (None, nothing, why not)."""
    try:
        plan = plan_export(mapped, find_target(_WEIGHTS), PlanOptions(Overrides()))
        with tempfile.TemporaryDirectory(prefix="edgepack-shape-") as folder:
            path = Path(folder, "header.gguf")
            with path.open("wb") as stream:  # a header and a hole: no weights are needed to know the memory
                GGUFWriter(stream, plan.metadata, plan.infos).write_header()
                stream.truncate(plan.total_bytes)
            shape = read_shape(read_header(path))
            return shape, tuple(_at(shape, ctx) for ctx in contexts_up_to(shape.n_ctx_train)), ""
    except EdgepackError as error:
        return None, (), str(error)


def contexts_up_to(longest: int) -> list[int]:
    """Powers of two from 512 to the context of training, and that itself; the last few where they are many."""
    powers = [_FIRST_CONTEXT << power for power in range(24) if _FIRST_CONTEXT << power < longest]
    return [*powers, longest][-_MOST_CONTEXTS:]


def _at(shape: ModelShape, ctx: int) -> ContextMemory:
    use = plan_memory(shape, MemoryRequest(ctx)).cpu
    return ContextMemory(ctx, use.kv, use.total)


def _targets(mapped: MappedModel, parameters: int) -> Iterator[TargetSize]:
    for name in TARGETS:
        target = find_target(name)
        size = plan_export(mapped, target, PlanOptions(Overrides())).total_bytes
        yield TargetSize(target.name, size, 8 * size / max(1, parameters))
