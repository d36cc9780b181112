"""How much memory a run will take, and how it is made to fit: activations recomputed, then fewer examples at once.

What one example takes is measured: what autograd keeps of a forward over short examples, scaled to the whole length
(constant, linear and quadratic part, as changed weights, activations and attention have them). Running is `loop`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgepack.errors import ResourceError
from edgepack.quant.learning.layers import blocks_of
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from edgepack.quant.learning.objectives import Objective
    from edgepack.quant.learning.settings import LearningSettings

_SHORT = 32  # tokens of the shortest of three examples that are measured; two and three times as many of the others
_ADAM = 2  # moments of AdamW, of a parameter's own type
_LOGITS = 3  # float32 arrays of the size of the logits that a backward pass holds beside what is kept
# What the C allocator and temporaries add to what is kept (docs/learning.md). Frozen weights keep no inputs for their
# own gradients, so that beside an adapter's activations the same temporaries weigh more.
_SPARE, _SPARE_OF_ADAPTERS = 1.25, 1.65


@dataclass(frozen=True)
class Plan:
    """How a run goes through memory.

    Attributes:
        batch: examples at once.
        accumulation: how often that makes the batch of the settings.
        recomputes: whether activations inside blocks are computed again for the backward pass.
        peak: predicted bytes.
        note: a line where something was changed to fit; empty otherwise.
    """

    batch: int
    accumulation: int
    recomputes: bool
    peak: int
    note: str = ""


@dataclass(frozen=True)
class Footprint:
    """What a run takes.

    Attributes:
        fixed: bytes whatever the batch: the process, weights, gradients, the optimiser's moments.
        blocks: bytes that autograd keeps of one example inside the blocks.
        rest: bytes outside of them.
        edges: bytes of the states that enter the blocks, which stay where activations are recomputed.
        count: how many blocks.
        once: bytes inside the blocks of a whole batch, however many examples it has: weights that are computed anew.
        spare: what is really taken for each byte that is kept.
    """

    fixed: int
    blocks: int
    rest: int
    edges: int
    count: int
    once: int = 0
    spare: float = _SPARE

    def peak(self, batch: int, *, recomputes: bool) -> int:
        """Bytes with `batch` examples at once."""
        inside = self.edges + self.blocks // self.count if recomputes else self.blocks
        once = self.once // self.count if recomputes else self.once
        return round(self.fixed + self.spare * (once + batch * (inside + self.rest)))


def plan_memory(
    model: nn.Module, example: Mapping[str, torch.Tensor], objective: Objective, settings: LearningSettings
) -> Plan:
    """The batch of the settings if it fits; else activations are recomputed, then the batch is divided until it does.

    Args:
        model: on its device, with the parameters that learn.
        example: one of the examples, for its keys and types.
        objective: what is computed of it.
        settings: how.

    Raises:
        ResourceError: one example at a time does not fit; the text says how much it needs.
    """
    if settings.max_memory is None:
        return Plan(settings.batch, 1, False, 0)
    found = footprint(model, example, objective, settings.length)
    can_recompute = bool(getattr(model, "supports_gradient_checkpointing", False))
    return plan_of(found, settings.batch, settings.max_memory, settings.length, recomputes=can_recompute)


def plan_of(found: Footprint, batch: int, limit: int, length: int, *, recomputes: bool) -> Plan:
    """As `plan_memory`, of a footprint.

    Args:
        found: what a run takes.
        batch: that is asked for.
        limit: bytes.
        length: tokens of an example, for messages.
        recomputes: whether the model can compute activations again.
    """
    sizes = [size for size in range(batch, 0, -1) if batch % size == 0]
    tries = [(batch, False), *((size, recomputes) for size in sizes)]
    peak = 0
    for size, again in tries:
        peak = found.peak(size, recomputes=again)
        if peak <= limit:
            return Plan(size, batch // size, again, peak, _said(size, batch, again, peak, limit))
    raise ResourceError(
        f"--max-memory {format_size(limit)}: one example of {length} tokens at a time needs about"
        f" {format_size(peak)}: use a shorter length or more memory"
    )


def _said(size: int, batch: int, recomputes: bool, peak: int, limit: int) -> str:
    done = ["activations are computed twice"] if recomputes else []
    done += [f"a batch of {batch} goes through in parts of {size}"] if size != batch else []
    if not done:
        return ""
    return f"memory: {' and '.join(done)}, for a peak of about {format_size(peak)} of {format_size(limit)}"


def footprint(model: nn.Module, example: Mapping[str, torch.Tensor], objective: Objective, length: int) -> Footprint:
    """Measure what one example of `length` tokens takes; changes neither weights nor gradients."""
    blocks = blocks_of(model)
    weights = {id(each): each.numel() * each.element_size() for each in model.parameters()}
    learnt = sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    device = next(model.parameters()).device
    full = min(length, len(example["input_ids"]))
    short = max(1, min(_SHORT, full // 3))
    kept = [_kept(model, blocks, _cut(example, times * short, device), objective) for times in (1, 2, 3)]
    (once, inside), (more, outside) = (_scaled(found, short, length) for found in zip(*kept, strict=True))
    width = int(model.config.get_text_config().hidden_size)
    size = next(model.parameters()).element_size()
    vocabulary = int(model.config.get_text_config().vocab_size)
    held = max(resident(device), sum(weights.values()))
    return Footprint(
        held + learnt * (1 + _ADAM), inside, more + outside + _LOGITS * 4 * length * vocabulary,
        len(blocks) * length * width * size, len(blocks), once,
        _SPARE if 2 * learnt > sum(weights.values()) else _SPARE_OF_ADAPTERS,
    )  # fmt: skip


def _cut(example: Mapping[str, torch.Tensor], size: int, device: torch.device) -> dict[str, torch.Tensor]:
    return {key: value[:size][None].to(device) for key, value in example.items()}


def _scaled(kept: Sequence[int], short: int, length: int) -> tuple[int, int]:
    """(c, a·n + b·n² at n = `length`) of bytes `kept`, c + a·n + b·n² at `short` tokens, twice and thrice as many."""
    one, two, three = kept
    square = max(0.0, (three - 2 * two + one) / (2 * short * short))
    linear = max(0.0, (two - one) / short - 3 * square * short)
    constant = max(0.0, one - linear * short - square * short * short)
    return round(constant), round(linear * length + square * length * length)


def _kept(
    model: nn.Module, blocks: nn.ModuleList, inputs: Mapping[str, torch.Tensor], objective: Objective
) -> tuple[int, int]:
    """Bytes that autograd keeps of one forward (inside blocks, outside), each storage once, weights left out."""
    seen = {each.untyped_storage().data_ptr() for each in model.parameters()}
    counts, inside = [0, 0], [False]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            counts[0 if inside[0] else 1] += storage.nbytes()
        return tensor

    def switch(value: bool) -> Callable[..., None]:
        def hook(*_arguments: Any) -> None:
            inside[0] = value

        return hook

    handles = [
        handle
        for block in blocks
        for handle in (block.register_forward_pre_hook(switch(True)), block.register_forward_hook(switch(False)))
    ]
    was_training = model.training
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = objective(model, inputs)
            del loss
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return counts[0], counts[1]


def resident(device: torch.device) -> int:
    """Bytes that the process, or on the device torch, holds now; 0 where that cannot be read."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    import mmap

    return pages * mmap.PAGESIZE
