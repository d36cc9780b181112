"""What `edgepack analyze --architecture` tells people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.pipeline.architecture import Architecture


def lines(found: Architecture) -> Iterator[str]:
    """A model's shape, parameters by part, memory by context and sizes by target."""
    yield f"{found.name}: {found.architecture}, {found.kind}, {found.parameters:,} parameters"
    rows = [
        ("hidden size", f"{found.hidden_size:,}"), ("layers", f"{found.layers}"),
        ("heads", f"{found.heads}, {found.kv_heads} for keys and values"),
        ("feed-forward", f"{found.feed_forward:,}"), ("vocabulary", f"{found.vocabulary:,}"),
        ("context", f"{found.context:,} tokens"),
    ]  # fmt: skip
    if found.experts:
        rows.append(("experts", f"{found.experts}, {found.experts_used} of them used for a token"))
    yield from (f"  {name:<14} {text}" for name, text in rows)
    yield "parameters"
    for part, count in found.parts.items():
        yield f"  {part:<14} {count:>15,}  {count / found.parameters:>6.1%}"
    yield "memory by context (KV cache F16; in all with weights of Q4_K_M, on one device)"
    if found.memory_note:
        yield f"  not known: {found.memory_note}"
    for each in found.memory:
        yield f"  {each.ctx:>9,} tokens  {format_size(each.kv):>9}  {format_size(each.total):>9}"
    yield "targets"
    for target in found.targets:
        yield f"  {target.target:<14} {format_size(target.bytes):>9}  {target.bits_per_weight:.2f} bits a weight"
    yield from (f"note: {note}" for note in found.notes)
