"""`edgepack cache`: what is installed on this machine, and how to free it; the work is `edge.install.cache`'s."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import SIZE, json_option, note, print_json, say
from edgepack.errors import UsageError
from edgepack.quantities import format_duration, format_size

if TYPE_CHECKING:
    from edgepack.edge.install.cache_files import CacheEntry

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@click.group()
def command() -> None:
    """List, check and prune the models that `run` installed (EDGEPACK_CACHE, or the user's cache folder)."""


@command.command("list")
@click.option("--verify", is_flag=True, help="Check every byte; exit code 1 when an entry is damaged.")
@json_option
def list_entries(verify: bool, as_json: bool) -> int:
    """Print every installed file, the most recently used first."""
    from edgepack.edge.install.cache import ModelCache

    cache = ModelCache()
    entries = cache.entries()
    problems = {entry.sha256: cache.problem(entry) for entry in entries} if verify else {}
    if as_json:
        print_json({"folder": str(cache.folder), "entries": [_as_object(e, problems.get(e.sha256)) for e in entries]})
    else:
        for entry in entries:
            state = problems.get(entry.sha256) or ("" if entry.complete else "not finished")
            age = format_duration(max(time.time() - entry.used, 0))
            say(f"{entry.sha256[:12]}  {format_size(entry.bytes):>8}  {age:>14} ago  {entry.name}  {state}")
        note(f"{len(entries)} entries, {format_size(sum(entry.bytes for entry in entries))} in {cache.folder}")
    return 1 if any(problems.values()) else 0


def _as_object(entry: CacheEntry, problem: str | None) -> dict[str, Any]:
    return {
        "sha256": entry.sha256,
        "name": entry.name,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "used": entry.used,
        "complete": entry.complete,
        "problem": problem,
    }


@command.command("prune")
@click.option("--older-than", metavar="AGE", help="Remove what was not used for so long, such as 30d or 12h.")
@click.option("--keep", type=SIZE, help="Then remove, unused longest first, until at most so much is left.")
@click.option("--all", "everything", is_flag=True, help="Remove everything.")
@json_option
def prune_entries(older_than: str | None, keep: int | None, everything: bool, as_json: bool) -> None:
    """Free disk space; without options only what interrupted installations left."""
    from edgepack.edge.install.cache import ModelCache, prune

    age = None if older_than is None else _seconds(older_than)
    cache = ModelCache()
    removed = prune(cache, older_than=age, keep_bytes=keep, everything=everything)
    freed = sum(entry.bytes for entry in removed)
    if as_json:
        print_json({"removed": [entry.sha256 for entry in removed], "bytes": freed})
    else:
        kept = f"; {len(cache.entries())} in use, kept" if everything and cache.entries() else ""
        note(f"{len(removed)} entries removed, {format_size(freed)} freed{kept}")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip().lower())
    if match is None:
        raise UsageError(f"age '{text}': expected a number with s, m, h, d or w, such as 30d")
    return float(match[1]) * _UNITS[match[2]]
