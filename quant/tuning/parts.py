"""Kinds of parameters that a file has: each has a rate of its own. What they are is told in `tensors`."""

from __future__ import annotations

VECTORS, ROWS, STEPS, CODES, INTEGERS = "vectors", "rows", "steps", "codes", "integers"
PARTS = (VECTORS, ROWS, STEPS, CODES, INTEGERS)
DEFAULT_PARTS = (ROWS, CODES, INTEGERS)
"""What measured best for the time (docs/tuning.md)."""
REFINED_PARTS = (VECTORS, STEPS)
"""The same for a file whose integers were refined: they are where they should be."""
STE, GUMBEL = "ste", "gumbel"
MOVES = (STE, GUMBEL)
"""How integers are moved: straight-through, or by a Gumbel relaxation."""
