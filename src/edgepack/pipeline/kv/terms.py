"""What results and page tell alike: the kinds of vectors, and the shares of energy that dimensions are counted for."""

from __future__ import annotations

from typing import Literal, get_args

KindName = Literal["q_before", "q", "k_before", "k", "v"]
KINDS: tuple[KindName, ...] = get_args(KindName)
SHARES = (0.90, 0.95, 0.99)
