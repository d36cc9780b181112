"""What a file states was measured of it, as objects that `inspect` shows; nothing is held against its contents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.edge.confidence import record as confidence
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.kv import record as kv
from edgepack.errors import EdgepackError, UsageError

if TYPE_CHECKING:
    from edgepack.edge.fit.shape import ModelShape
    from edgepack.gguf.reader import GGUFHeader

PROBLEM = "problem"


def stated(header: GGUFHeader) -> dict[str, dict[str, Any]]:
    """`confidence` and `kv`, each where the header says something of it; what is not sound has a `problem` alone.

    Whether it holds for the file's contents is asked when the file is opened, not here.
    """
    found: dict[str, dict[str, Any]] = {}
    if confidence.has_record(header.metadata):
        try:
            found["confidence"] = _confidence(confidence.read_record(header.metadata))
        except UsageError as error:
            found["confidence"] = {PROBLEM: str(error)}
    if kv.has_record(header.metadata):
        try:
            record = kv.read_record(header.metadata)
            found["kv"] = {"digest": record.digest, **record.table.json(_shape(header))}
        except UsageError as error:
            found["kv"] = {PROBLEM: str(error)}
    return found


def _confidence(record: confidence.Record) -> dict[str, Any]:
    return {
        "digest": record.digest,
        "forms": {
            form: {
                "method": type(fitted.calibrator).__name__.lower(),
                "threshold": fitted.threshold,
                "lengths": list(fitted.lengths),
                "figures": dict(fitted.figures),
            }
            for form, fitted in record.fitted.items()
        },
    }


def _shape(header: GGUFHeader) -> ModelShape | None:
    """Heads and layers, from which bytes a token follow; None of a model whose memory is not understood."""
    try:
        return read_shape(header)
    except EdgepackError:
        return None
