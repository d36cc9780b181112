"""What `recover` and `teach` share: where an adapter goes, what a result says of it, inputs that must be there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError
from edgepack.quantities import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.api.values import FilePath, JsonObject
    from edgepack.pipeline.adapting.settings import Forecast


CARD = "README.md"

READ_OFTEN = "it is read several times while an adapter is trained"


def planned_json(output: Path, forecast: Forecast) -> JsonObject:
    """What a dry run says."""
    return {"output": str(output), "dry_run": True, **forecast.json()}


def made_json(output: Path, figures: Mapping[str, Any], adapter_bytes: int) -> JsonObject:
    """What a run says: its figures, the output and its bytes, and those of the adapter in it."""
    return {**figures, "output": str(output), "bytes": output.stat().st_size, "adapter_bytes": adapter_bytes}


def size_in_bytes(given: int | str | None) -> int | None:
    """Bytes, given as such or as a size such as `16GB`."""
    return parse_size(given) if isinstance(given, str) else given


def check_there(path: Path) -> None:
    """Raise UsageError where there is no such file or folder."""
    if not path.exists():
        raise UsageError(f"'{path}': no such file or folder")


def adapter_target(output: FilePath | None, model: Path, name: str, *, pack: bool) -> Path:
    """Where the result goes."""
    if output is not None:
        return Path(output)
    folder = model.parent if model.is_file() else Path()
    return folder / (f"{name.removesuffix('-lora.gguf')}.edgepack" if pack else name)
