"""The calibration of a file that is opened: found, checked, and dropped with a reason where it is another file's.

What it says of an answer is `record`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.confidence.record import Record, has_record, read_record
from edgepack.edge.confidence.statements import difference
from edgepack.errors import UsageError
from edgepack.packaging.archive import is_archive
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgepack.edge.confidence.record import Fitted, Form
    from edgepack.edge.llama.options import Adapter
    from edgepack.gguf.reader import GGUFHeader
    from edgepack.progress import Progress

_AGAIN = "run edgepack calibrate again"


@dataclass(frozen=True)
class Found:
    """What became of a file's calibration.

    Attributes:
        record: it; None where the file has none, or one that does not hold for it.
        problem: why it was dropped; empty where it was not.
    """

    record: Record | None
    problem: str = ""


def find_record(
    path: Path,
    header: GGUFHeader,
    adapters: Sequence[Adapter] = (),
    *,
    own_template: bool = True,
    progress: Progress = silent,
) -> Found:
    """The calibration of a plain GGUF as it is opened; where there is one, all of the file is read to check it.

    Args:
        path: the GGUF that runs.
        header: its header.
        adapters: that run with it.
        own_template: whether chats go through the template that it brings.
        progress: told of bytes.
    """
    if not has_record(header.metadata):
        return Found(None)
    try:
        record = read_record(header.metadata)
    except UsageError as error:
        return Found(None, f"the confidence that this file states is dropped: {error}")
    if is_archive(path):
        return Found(None, "the confidence that this file states is dropped: its model is read out of the archive, "
                           "and only an installed one can be checked")  # fmt: skip
    other = difference(path, header, adapters, (record.digest, record.adapters), progress)
    if other:
        return Found(None, f"the confidence that this file states is dropped: it was fitted {other}: {_AGAIN}")
    if not own_template and "chat" in record.fitted:
        rest: dict[Form, Fitted] = {form: fitted for form, fitted in record.fitted.items() if form != "chat"}
        what = "the confidence of chats is dropped: it was fitted with the model's own chat template"
        return Found(Record(record.digest, record.adapters, rest) if rest else None, what)
    return Found(record)
