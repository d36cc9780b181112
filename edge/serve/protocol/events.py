"""Server-sent events: bytes of a stream → events → bytes. What they mean is left to `streams`."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True)
class Event:
    """One event: its data (JSON, or `[DONE]`), and its name where it has one."""

    data: str
    name: str = ""

    def encode(self) -> bytes:
        """As it stands in a stream."""
        head = f"event: {self.name}\n" if self.name else ""
        return f"{head}data: {self.data}\n\n".encode()


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """The events in a stream of bytes that may be cut anywhere; comments (pings) are left out."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    async for piece in pieces:
        *blocks, rest = (rest + decoder.decode(piece)).replace("\r\n", "\n").split("\n\n")
        for block in blocks:
            if (event := _event(block)) is not None:
                yield event


def _event(block: str) -> Event | None:
    name, parts = "", []
    for line in block.split("\n"):
        field, _colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            parts.append(value)
        elif field == "event":
            name = value
    return Event("\n".join(parts), name) if parts else None
