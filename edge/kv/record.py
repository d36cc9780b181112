"""A table of caches as a GGUF keeps it, and the table of a file that is opened: found, checked, or dropped.

What a table says is `table`'s; what decides a file's answers `edge.confidence.binding`'s.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.edge.confidence.statements import difference, stated_binding, stated_object, stated_version
from edgepack.edge.kv.table import CacheCost, CacheTable
from edgepack.edge.llama.options import kv_name, kv_types
from edgepack.errors import UsageError
from edgepack.gguf import keys
from edgepack.gguf.types import Value, ValueType, array, string
from edgepack.packaging.archive import is_archive
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edgepack.edge.llama.options import Adapter
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.progress import Progress

VERSION = 1
_MOST_CHARACTERS = 1 << 18
_MOST_CACHES = 128
_LONGEST_NAME = 200
_DROPPED = "the costs of caches that this file states are dropped"
_AGAIN = "run edgepack kv again"


@dataclass(frozen=True)
class Record:
    """All that a file says of its caches.

    Attributes:
        digest: of the contents that they were measured on (`binding.contents_digest`).
        adapters: of those that ran with them (`binding.adapter_digests`).
        table: what each costs.
    """

    digest: str
    adapters: tuple[str, ...]
    table: CacheTable

    def metadata(self) -> dict[str, Value]:
        """As a GGUF's metadata keep it."""
        told: dict[str, Value] = {
            keys.KV_VERSION: Value(ValueType.UINT32, VERSION),
            keys.KV_DIGEST: string(self.digest),
            keys.KV_TABLE: string(json.dumps(self.table.json(), sort_keys=True, allow_nan=False)),
        }
        if self.adapters:
            told[keys.KV_ADAPTERS] = array(ValueType.STRING, list(self.adapters))
        return told


@dataclass(frozen=True)
class Found:
    """What became of a file's table.

    Attributes:
        table: it; None where the file has none, or one that does not hold for it.
        problem: why it was dropped; empty where it was not.
    """

    table: CacheTable | None
    problem: str = ""


def has_record(metadata: Mapping[str, Value]) -> bool:
    """Whether a GGUF says anything of what caches cost it."""
    return any(key.startswith(keys.KV) for key in metadata)


def find_table(
    path: Path, header: GGUFHeader, adapters: Sequence[Adapter] = (), *, progress: Progress = silent
) -> Found:
    """The table of a file as it is opened; a plain GGUF that has one is read wholly to check it.

    An archive that is only looked at is taken at its word: its contents are checked when it is installed.

    Args:
        path: the GGUF or archive.
        header: of its model.
        adapters: that run with it.
        progress: told of bytes.
    """
    if not has_record(header.metadata):
        return Found(None)
    try:
        record = read_record(header.metadata)
    except UsageError as error:
        return Found(None, f"{_DROPPED}: {error}")
    if is_archive(path):
        return Found(record.table)
    other = difference(path, header, adapters, (record.digest, record.adapters), progress)
    return Found(None, f"{_DROPPED}: measured {other}: {_AGAIN}") if other else Found(record.table)


def read_record(metadata: Mapping[str, Value]) -> Record:
    """The record in a GGUF's metadata, which anybody may have written.

    Raises:
        UsageError: there is none, or it is not sound; the text names the key.
    """
    stated_version(metadata, keys.KV_VERSION, VERSION)
    digest, adapters = stated_binding(metadata, keys.KV_DIGEST, keys.KV_ADAPTERS)
    return Record(digest, adapters, _table(stated_object(metadata, keys.KV_TABLE, _MOST_CHARACTERS)))


def _table(told: dict[str, Any]) -> CacheTable:
    where = keys.KV_TABLE
    rows = told.get("caches")
    if not isinstance(rows, list) or not 1 <= len(rows) <= _MOST_CACHES:
        raise UsageError(f"{where}.caches: expected a list of 1 to {_MOST_CACHES}")
    return CacheTable(
        costs=tuple(_cost(row, f"{where}.caches[{index}]") for index, row in enumerate(rows)),
        ctx=_count(told, "ctx", where),
        chunks=_count(told, "chunks", where),
        tokens=_count(told, "tokens", where),
        text=_name(told, "text", where),
        text_sha256=_name(told, "text_sha256", where),
        engine=_name(told, "engine", where),
        max_kl=_number(told, "max_kl", where),
        original="" if told.get("original") is None else _name(told, "original", where),
    )


def _cost(row: object, where: str) -> CacheCost:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: expected a JSON object, got {type(row).__name__}")
    name = _name(row, "kv_type", where)
    interval = row.get("agreement_interval")
    if not isinstance(interval, list) or len(interval) != 2:
        raise UsageError(f"{where}.agreement_interval: expected two numbers")
    low, high = ({"end": end} for end in interval)
    against = row.get("original_kl") is not None
    return CacheCost(
        kv_name(*kv_types(name)),
        _number(row, "kl", where),
        math.inf if row.get("kl_high") is None else _number(row, "kl_high", where),
        _number(row, "agreement", where),
        (_number(low, "end", f"{where}.agreement_interval"), _number(high, "end", f"{where}.agreement_interval")),
        _number(row, "perplexity_ratio", where),
        _number(row, "original_kl", where) if against else None,
        _number(row, "original_agreement", where) if against else None,
    )


def _number(told: dict[str, Any], key: str, where: str) -> float:
    value = told.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e300:
        return float(value)
    raise UsageError(f"{where}.{key}: expected a finite number, at least 0, got {str(value)[:40]!r}")


def _count(told: dict[str, Any], key: str, where: str) -> int:
    value = told.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53:
        return value
    raise UsageError(f"{where}.{key}: expected a whole number above 0, got {str(value)[:40]!r}")


def _name(told: dict[str, Any], key: str, where: str) -> str:
    value = told.get(key)
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable():
        return value
    raise UsageError(f"{where}.{key}: expected a name of 1 to {_LONGEST_NAME} characters, got {str(value)[:40]!r}")
