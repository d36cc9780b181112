"""The hidden folder of a training beside its output: when it goes, and what is left for `--resume`.

What lies in it is the training's own.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgepack.errors import EdgepackError, ResourceError
from edgepack.pipeline.makers.wire_scratch import own_scratch
from edgepack.quant.learning.checkpoints import any_kept

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def training_scratch(folder: Path, owner: Path, digest: str, *, resume: bool) -> Iterator[None]:
    """The folder of a run, with what an interrupted one of the same left where `resume` asks for it.

    It goes when the block ends, and with an error that came before anything was learnt. A kill, Ctrl-C, a full disk and
    an error after a checkpoint leave it: with room, or with time, the run goes on.

    Args:
        folder: beside the output.
        owner: the output, for messages.
        digest: of all that the run's results depend on.
        resume: as above.
    """
    own_scratch(folder, owner, digest, resume=resume)
    try:
        yield
    except EdgepackError as error:
        if not isinstance(error, ResourceError) and not any_kept(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
