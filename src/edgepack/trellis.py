"""Trellis codes for scalar quantisation: which integers a state allows and where an integer leads; values, no search.

The quantiser (`edgepack.quant.wire`) and the archive's coder (`edgepack.packaging`) must agree on them. Choosing the
best path and coding it is theirs.

Sources: G. Ungerboeck, Channel coding with multilevel/phase signals, IEEE Trans. IT-28 (1982), table I (codes for
amplitude modulation); T. R. Fischer and M. Wang, Entropy-constrained trellis-coded quantization, IEEE Trans. IT-38
(1992). Zero in both quantisers, as ITU-T H.266 has it (8.7.3), was tried and lost .01 to .03 bit from 1.5 bits on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

# States → parity-check polynomials (h0, h1), octal as in the table. h0 is odd and h1 even, so that the quantiser
# depends on the state alone and the lowest bit of the index on the step taken.
_CODES = {
    4: (0o5, 0o2),
    8: (0o13, 0o04),
    16: (0o23, 0o04),
    32: (0o45, 0o10),
    64: (0o103, 0o024),
    128: (0o235, 0o126),
    256: (0o515, 0o362),
}
STATES = tuple(_CODES)
MOST_ROWS = 128  # of a path: eight states then lose .01 bit a weight of the .17 that they gain (tools/trellis_gain.py)
_LEAST_ROWS = 8  # below, a trellis gains next to nothing
LANE_BYTES = 1 << 20  # at most so many bytes of rows are one path's: an archive's chunks hold whole paths


@dataclass(frozen=True)
class TrellisCode:
    """A shift register of the last log2(states) steps, run along the rows of a column.

    State s has quantiser q = `quantisers[s]`, which gives the integers n = 2k + q for any index k: the even ones or the
    odd ones. The step taken is the lowest bit of k, exclusive or `taps[s]`; the next state is ((s << 1) | step) mod
    `states`. By n mod 4 the integers are Ungerboeck's subsets D0 … D3.

    A path begins in state column mod `states`, so that the integers of no row of paths are all even. A row may stand
    aside: its integers are all even, and paths pass it by. Where a row's weights are small beside its step, forced odd
    integers would cost more than the trellis gains.

    Attributes:
        states: a power of two, one of `STATES`.
        rows: a path begins at every row (of its tensor) that is a multiple of this.
    """

    states: int
    rows: int

    def __post_init__(self) -> None:
        if self.states not in _CODES or self.rows < 1:
            raise ValueError(f"expected one of {STATES} states and at least 1 row, got {self.states} and {self.rows}")

    @property
    def quantiser_mask(self) -> int:
        """A state's quantiser is the parity of these of its bits."""
        return _CODES[self.states][1] >> 1

    @property
    def index_mask(self) -> int:
        """What turns the lowest bit of an index into the step is the parity of these of the state's bits."""
        return _CODES[self.states][0] >> 1

    @cached_property
    def quantisers(self) -> tuple[int, ...]:
        """Quantiser of each state, 0 or 1."""
        return _parities(self.states, self.quantiser_mask)

    @cached_property
    def taps(self) -> tuple[int, ...]:
        """What turns the lowest bit of an index into the step, for each state."""
        return _parities(self.states, self.index_mask)


def _parities(states: int, mask: int) -> tuple[int, ...]:
    """Whether an odd number of the masked bits is set, for every state."""
    return tuple((state & mask).bit_count() & 1 for state in range(states))


def trellis_of(states: int, row_bytes: int) -> TrellisCode | None:
    """The code of a matrix whose rows take `row_bytes` in the GGUF; None for rows too long for paths.

    Whoever rounds and whoever packs find the same code from the type and width alone.
    """
    rows = MOST_ROWS
    while rows >= _LEAST_ROWS and rows * row_bytes > LANE_BYTES:
        rows //= 2
    return TrellisCode(states, rows) if rows >= _LEAST_ROWS else None
