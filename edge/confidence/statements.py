"""What a file states of itself in its metadata: read as anybody may have written it, and held against its contents.

A calibration (`record`) and a table of caches (`edge.kv.record`) are such statements; what they say is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.edge.confidence.binding import adapter_digests, contents_digest
from edgepack.errors import UsageError
from edgepack.files.source import parse_object
from edgepack.gguf.types import ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepack.edge.llama.options import Adapter
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.gguf.types import Value
    from edgepack.progress import Progress


def stated_version(metadata: Mapping[str, Value], key: str, known: int) -> None:
    """Refuse a statement of another version; raises UsageError."""
    version = stated_value(metadata, key, ValueType.UINT32)
    if version != known:
        raise UsageError(f"{key}: expected {known}, got {version}: made by a newer edgepack")


def stated_binding(metadata: Mapping[str, Value], digest: str, adapters: str) -> tuple[str, tuple[str, ...]]:
    """What a statement holds for: the digest under key `digest`, and those under `adapters`, which may be absent."""
    told = str(stated_value(metadata, digest, ValueType.STRING))
    if adapters not in metadata:
        return told, ()
    return told, tuple(str(one) for one in stated_value(metadata, adapters, ValueType.ARRAY))


def stated_value(metadata: Mapping[str, Value], key: str, kind: ValueType) -> Any:
    """The value of a key; raises UsageError where there is none of that type."""
    value = metadata.get(key)
    if value is None or value.type is not kind:
        got = "nothing" if value is None else value.type.name.lower()
        raise UsageError(f"{key}: expected a value of type {kind.name.lower()}, got {got}")
    return value.value


def stated_object(metadata: Mapping[str, Value], key: str, most: int) -> dict[str, Any]:
    """The JSON object in a key's text of at most `most` characters; raises UsageError."""
    text = str(stated_value(metadata, key, ValueType.STRING))
    if len(text) > most:
        raise UsageError(f"{key}: expected at most {most} characters, got {len(text)}")
    return parse_object(text, key)


def difference(
    path: Path,
    header: GGUFHeader,
    adapters: Sequence[Adapter],
    bound: tuple[str, tuple[str, ...]],
    progress: Progress,
) -> str:
    """How a file as it is opened differs from what a statement holds for; empty where it does not.

    Args:
        path: a plain GGUF; all of it is read.
        header: its header.
        adapters: that run with it.
        bound: digest and adapters, as `stated_binding` gives them.
        progress: told of bytes.
    """
    if (got := contents_digest(path, header, progress)) != bound[0]:
        return f"on contents {bound[0][:16]}…, these are {got[:16]}…"
    return "" if tuple(adapter_digests(adapters)) == bound[1] else "with other adapters"
