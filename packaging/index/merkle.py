"""A Merkle root over digests, as RFC 6962 section 2.1 builds it; which digests is left to the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.packaging.format import sha256

if TYPE_CHECKING:
    from collections.abc import Iterable


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """SHA-256 tree hash: leaves are hashed behind a 0 byte, pairs behind a 1 byte; of nothing, SHA-256 of nothing."""
    level = [sha256(b"\0", leaf) for leaf in leaves]
    if not level:
        return sha256()
    while len(level) > 1:
        # An odd node moves up unchanged, which gives RFC 6962's split at the largest power of two.
        pairs = [sha256(b"\1", left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]
