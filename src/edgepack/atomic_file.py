"""Old names of `files.output`, for branches that are not merged yet; it goes with the last of them."""

from edgepack.files.names import partial_path
from edgepack.files.opened import sync_folder
from edgepack.files.output import atomic_output, check_output

__all__ = ["atomic_output", "check_output", "partial_path", "sync_folder"]
