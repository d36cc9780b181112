"""What a finished stage leaves on disk: the digest of its inputs, what it measured, its files with their digests."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError
from edgepack.file_digest import file_sha256
from edgepack.files.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Figures = dict[str, Any]


@dataclass(frozen=True)
class StageResult:
    """A stage that is done.

    Attributes:
        name: `pass-0-prune` …, `export`, `pack`, `validate` or `certify`.
        key: digest of its inputs: files, settings, versions.
        figures: what was measured; `bytes`, `ratio`, `agreement`, `accuracy_drop` mean the same at every stage.
        seconds: wall time of the run that did it.
        peak_memory_bytes: of that run, as `stages.memory` counts.
        files: name in the output folder → SHA-256.
        passes: of `export`: the passes in front of it.
        skipped: whether an earlier run had done it.
    """

    name: str
    key: str
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    passes: tuple[StageResult, ...] = ()
    skipped: bool = False

    def as_json(self) -> dict[str, Any]:
        """The result as JSON has it."""
        return {**asdict(self), "files": dict(self.files), "passes": [each.as_json() for each in self.passes]}


def write_record(path: Path, result: StageResult) -> None:
    """Keep a result, whole or not at all."""
    with atomic_output(path) as stream:
        stream.write(json.dumps(result.as_json(), indent=1).encode())


def read_record(path: Path) -> StageResult | None:
    """A kept result, marked as skipped; None where there is none that can be read."""
    try:
        return _of_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _of_json(found: Mapping[str, Any]) -> StageResult:
    return StageResult(
        str(found["name"]), str(found["key"]), dict(found["figures"]), float(found["seconds"]),
        int(found["peak_memory_bytes"]), {str(name): str(digest) for name, digest in found["files"].items()},
        tuple(_of_json(each) for each in found["passes"]), skipped=True,
    )  # fmt: skip


def kept_result(path: Path, key: str, folder: Path) -> StageResult | None:
    """The result of an earlier run with the same inputs whose files still have their bytes; None where there is none.

    Args:
        path: of the record.
        key: digest of the inputs now.
        folder: where the stage's files lie.
    """
    found = read_record(path)
    if found is None or found.key != key:
        return None
    try:
        intact = all(file_sha256(folder / name) == digest for name, digest in found.files.items())
    except UsageError:  # a file that cannot be read
        return None
    return found if intact else None
