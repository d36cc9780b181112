"""What `recover` and `teach` share: where an adapter goes, and what a result says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def adapter_target(output: FilePath | None, model: Path, name: str, *, pack: bool) -> Path:
    """Where the result goes."""
    if output is not None:
        return Path(output)
    folder = model.parent if model.is_file() else Path()
    return folder / (f"{name.removesuffix('-lora.gguf')}.edgepack" if pack else name)
