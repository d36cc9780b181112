"""Points of a frontier as values: what is to be made, and what was measured of it; JSON both ways, checked.

Making is `making`'s, measuring `scoring`'s; nothing is computed here but bits a weight.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Spec:
    """A file to be made: an export's options.

    Attributes:
        id: family and size, such as `wire-q4k/Q4_K_M`; what `--points` looks at.
        family: who makes it, such as `wire-q4k`.
        options: field of `ExportRequest` → value.
        needs: what it is calibrated with: `importance` (a matrix), `calibration` (the text) or nothing.
        size_of: (`file_bytes` or `shipped_bytes`, id of a point made before): what `max_size` is; None for none.
        memory_of: id of a point made before, whose GGUF's bytes are `max_memory`; empty for none.
        max_bytes: `max_size` itself, where it is no other point's.
        calibration: another text than the study's, by its name there; empty for the study's.
        sequences: other than the study's.
    """

    id: str
    family: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    size_of: tuple[str, str] | None = None
    memory_of: str = ""
    max_bytes: int | None = None
    calibration: str = ""
    sequences: int | None = None

    @property
    def label(self) -> str:
        """What is behind the family's name."""
        return self.id.partition("/")[2]

    @property
    def slug(self) -> str:
        """The id as a file's name."""
        return self.id.replace("/", "-at-").replace(" ", "-")


@dataclass(frozen=True)
class TextFigures:
    """What one text says of a file.

    Attributes:
        tokens: that were scored.
        ctx: tokens in a chunk.
        mean_kl: of the file's distributions from the original's, in nats.
        kl_interval: its 95 % interval (low, high).
        top1: share of equal first choices.
        top1_interval: its 95 % interval.
        perplexity_ratio: the file's perplexity over the original's.
        ratio_interval: its 95 % interval.
        seconds: wall time of the scoring.
    """

    tokens: int
    ctx: int
    mean_kl: float
    kl_interval: tuple[float, float]
    top1: float
    top1_interval: tuple[float, float]
    perplexity_ratio: float
    ratio_interval: tuple[float, float]
    seconds: float


@dataclass(frozen=True)
class DeviceFit:
    """Whether a file fits a device wholly.

    Attributes:
        fits: whether every layer lies there, with the context.
        context: tokens of it.
        beside_bytes: what is needed there beyond the file's own bytes: context, buffers, driver.
        file_budget: the bytes that a file of this model may have there.
        tokens_per_second: estimated; None where nothing is known.
    """

    fits: bool
    context: int
    beside_bytes: int
    file_budget: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class Point:
    """A file that was made, and what it is worth.

    Attributes:
        id, family: its spec's.
        file_bytes: of the GGUF: what the device holds and reads a token.
        shipped_bytes: of the archive, the smaller of both coders.
        coder: which one: `planes` or `grids`.
        weights: numbers in its tensors.
        make_seconds, pack_seconds: wall time.
        limit: bytes that `max_size` allowed; None for none.
        texts: name → figures.
        devices: id → how it fits.
        lines: what the export told of it.
        failed: why there is none; the rest is then zero.
        version: edgepack's.
    """

    id: str
    family: str
    file_bytes: int = 0
    shipped_bytes: int = 0
    coder: str = ""
    weights: int = 0
    make_seconds: float = 0.0
    pack_seconds: float = 0.0
    limit: int | None = None
    texts: Mapping[str, TextFigures] = field(default_factory=dict)
    devices: Mapping[str, DeviceFit] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    failed: str = ""
    version: str = ""

    @property
    def label(self) -> str:
        """What is behind the family's name."""
        return self.id.partition("/")[2]

    @property
    def file_bits(self) -> float:
        """Bits a weight in memory."""
        return 8 * self.file_bytes / self.weights if self.weights else 0.0

    @property
    def shipped_bits(self) -> float:
        """Bits a weight of the archive."""
        return 8 * self.shipped_bytes / self.weights if self.weights else 0.0

    def with_text(self, name: str, figures: TextFigures) -> Point:
        """The point with one text's figures more."""
        return replace(self, texts={**self.texts, name: figures})

    def as_json(self) -> dict[str, Any]:
        """The point as an object."""
        return {**asdict(self), "file_bits": round(self.file_bits, 4), "shipped_bits": round(self.shipped_bits, 4)}


def point_from_json(value: Any, where: str) -> Point:
    """What `as_json` wrote.

    Raises:
        IntegrityError: it is something else.
    """
    try:
        plain = {name: value[name] for name in Point.__dataclass_fields__}
        texts = {name: _figures(each) for name, each in plain["texts"].items()}
        devices = {name: DeviceFit(**each) for name, each in plain["devices"].items()}
        point = Point(**{**plain, "texts": texts, "devices": devices, "lines": tuple(plain["lines"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{where}: not a point of a frontier: {error}") from None
    sizes = (point.file_bytes, point.shipped_bytes, point.weights)
    if not isinstance(point.id, str) or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise IntegrityError(f"{where}: not a point of a frontier: sizes must be counts, got {sizes!r:.80}")
    return point


_INTERVALS = ("kl_interval", "top1_interval", "ratio_interval")


def _figures(value: Mapping[str, Any]) -> TextFigures:
    ends = {name: tuple(_number(end) for end in value[name]) for name in _INTERVALS}
    rest = {name: _number(value[name]) for name in TextFigures.__dataclass_fields__ if name not in _INTERVALS}
    if any(len(each) != 2 for each in ends.values()):
        raise TypeError("intervals have two ends")
    return TextFigures(**{**rest, **ends})


def _number(value: Any) -> Any:
    """A number; None stands for one that JSON cannot hold."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {value!r:.40}")
    return value
