"""An export's model at a URL: the request with it opened, and what reads the model's own files refused.

How such a model is opened is `pipeline.located`'s.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.files.remote import is_url
from edgepack.pipeline.located import LocatedModel, located_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepack.pipeline.request import ExportRequest

# What cannot be done by reading tensors where they lie, and what would do instead.
_REFUSED: tuple[tuple[Callable[[ExportRequest], object], str, str], ...] = (
    (lambda r: r.mmproj, "--mmproj", "MODEL as a folder"),
    (lambda r: (r.is_gated or r.judges_weights or r.validate) and r.text is None,
     "holding a file against its original, which is read block by block and cannot write", "--text FILE"),
)  # fmt: skip


@contextmanager
def with_located(request: ExportRequest) -> Iterator[ExportRequest]:
    """The request with a model at a URL opened, while the block lasts; any other as it is.

    Raises:
        UsageError: what is asked for reads more than tensors, or no such protocol.
        EdgepackError: as `pipeline.located.located_model`.
    """
    if not is_url(request.model):
        yield request
        return
    url = str(request.model)
    for needs, what, expected in _REFUSED:
        if needs(request):
            raise UsageError(f"{what}: expected {expected}, got the URL '{url}'")
    with located_model(url, None if request.dry_run else request.path or Path("model.gguf")) as found:
        yield replace(request, model=found.folder, original=found.checkpoint, remote=found.weights)


def located_of(request: ExportRequest) -> LocatedModel | None:
    """The model at a URL that `with_located` opened; None of any other."""
    if not request.remote or request.original is None:
        return None
    return LocatedModel(request.source, request.original, request.remote)
