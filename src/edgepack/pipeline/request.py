"""What an export's options mean together: the kind of target, sizes in bytes, what is read and what is made.

Which options there are is `pipeline.export_options`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgepack.files.remote import is_url
from edgepack.pipeline.export_options import ExportOptions
from edgepack.pipeline.options import CODED, GGUF, WIRE
from edgepack.quantities import size_in_bytes


@dataclass(frozen=True)
class ExportRequest(ExportOptions):
    """What the user wants made of a model: the options of an export, and what follows from them."""

    @property
    def kind(self) -> str:
        """The kind of the target: who makes the file."""
        if self.target == WIRE:
            return WIRE
        return CODED if self.target is not None and self.target.startswith("edge-") else GGUF

    @property
    def source(self) -> Path:
        """The model's place."""
        return Path(self.model)

    @property
    def path(self) -> Path | None:
        """The output's place, where one was given."""
        return None if self.output is None else Path(self.output)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file and folder that is read: none of it may be written to."""
        named = (self.model, self.adapter, self.imatrix, self.calibration, self.recipe, self.text)
        return tuple(Path(each) for each in named if each is not None)

    @property
    def packs(self) -> bool:
        """Whether an archive is shipped: asked for, or said by the output's name."""
        return self.pack or (self.path is not None and self.path.suffix == ".edgepack")

    @property
    def max_bytes(self) -> int | None:
        """Of what is shipped: the GGUF and what belongs beside it, or the archive; raises UsageError for no size."""
        return size_in_bytes(self.max_size if self.max_download is None else self.max_download)

    @property
    def memory_bytes(self) -> int | None:
        """Of the GGUF on the device; raises UsageError for no size."""
        return size_in_bytes(self.max_memory)

    @property
    def shard_bytes(self) -> int | None:
        """Of each file; raises UsageError for no size."""
        return size_in_bytes(self.shard_size)

    @property
    def has_passes(self) -> bool:
        """Whether passes were named that change weights first."""
        return self.recipe is not None or bool(self.passes)

    @property
    def changes_weights(self) -> bool:
        """Whether passes run before anything is made: those that were named, and the smoothing in front of refining."""
        return self.has_passes or bool(self.smooth)

    @property
    def only_sees(self) -> bool:
        """Whether the projector alone is written."""
        return self.mmproj and self.target is None and self.max_size is None and not self.is_gated

    @property
    def needs_checkpoint(self) -> bool:
        """Whether what is asked for needs a checkpoint, into which a GGUF has to be read back."""
        calibrates = self.kind == CODED and self.calibration is not None
        changes = self.has_passes or self.adapter is not None
        return self.kind == WIRE or changes or calibrates or bool(self.refine)

    @property
    def refines(self) -> bool:
        """Whether the file is refined: asked for, or by default; after passes the default is `makers.refined`'s."""
        if self.refine is not None or self.kind != GGUF or self.only_sees:
            return bool(self.refine)
        plain = self.calibration is not None and not self.has_passes and self.quantizer == "edgepack"
        is_folder = self.source.is_dir() or is_url(self.model)
        return plain and is_folder and refinable(self.target) and find_spec("torch") is not None

    @property
    def has_budget(self) -> bool:
        """Whether what is given in place of a target is a number of bytes."""
        return (self.max_size, self.bits, self.for_device) != (None, None, None)

    @property
    def is_gated(self) -> bool:
        """Whether the file must reach a fidelity."""
        return self.min_agreement is not None or self.max_kl is not None

    @property
    def judges_weights(self) -> bool:
        """Whether the file's weights must be near the original's."""
        return self.max_mean_error is not None or self.max_tensor_error is not None


def refinable(target: str | None) -> bool:
    """Whether allocation chooses between the types of a gguf target; raises UsageError for none of llama.cpp's."""
    from edgepack.quant.refine.kinds import CANDIDATES
    from edgepack.quant.types.targets import find_target

    if target is None:
        return True
    default = find_target(target).default
    return default.is_quantized and default in CANDIDATES
