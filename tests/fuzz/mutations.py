"""Ways in which bytes go wrong: flips, other numbers, pieces cut, doubled or moved. It knows no format."""

from __future__ import annotations

from typing import Literal

from hypothesis import strategies as st

Kind = Literal["flip", "byte", "number", "cut", "insert", "double"]
KINDS: tuple[Kind, ...] = ("flip", "byte", "number", "cut", "insert", "double")
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
Mutation = tuple[Kind, int, int]  # kind, place in millionths of the length, a number


def mutated(data: bytes, mutations: list[Mutation]) -> bytes:
    """The bytes after every mutation, in order."""
    out = bytearray(data)
    for kind, place, number in mutations:
        at = place * len(out) // 1_000_000
        if not out:
            return bytes(out)
        if kind == "flip":
            out[at] ^= 1 << number % 8
        elif kind == "byte":
            out[at] = number % 256
        elif kind == "number":
            width = (1, 2, 4, 8)[number % 4]
            out[at : at + width] = NUMBERS[number % len(NUMBERS)].to_bytes(8, "little")[:width]
        elif kind == "cut":
            del out[at : at + number % 64]
        elif kind == "insert":
            out[at:at] = bytes(number % 16)
        else:
            out[at:at] = out[at : at + number % 256]
    return bytes(out)


mutations = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 999_999), st.integers(0, 2**16)), min_size=1, max_size=6
)
