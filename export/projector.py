"""Opens what sees of a Hugging Face folder as a `MappedModel` and plans its file, for llama.cpp's clip.cpp.

The projectors themselves are data in `export/projectors`; the part that reads and writes text is `mapped_model`'s.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError, UnsupportedModelError, UsageError
from edgepack.export.config import ModelConfig
from edgepack.export.json_file import read_json
from edgepack.export.mapped import MappedModel, refuse_integers, size_of
from edgepack.export.naming import general_metadata
from edgepack.export.plan import QUANTIZATION_VERSION, ExportPlan, PlannedTensor
from edgepack.export.rules.mapping import completed, map_tensors
from edgepack.export.rules.projector import PREPROCESSOR, TEXT_WIDTH, Projector
from edgepack.export.rules.without_graph import WITHOUT_PROJECTOR
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, TensorInfo, Value, string, u32
from edgepack.quant.types.mixtures import ModelFacts
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgepack.export.rows import Rows
    from edgepack.model import Checkpoint

PROJECTOR_TYPES = ("f16", "bf16", "q8_0", "f32")
"""The types of a projector's file, the usual one first."""
_PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # the later one decides


@cache
def projectors() -> dict[str, Projector]:
    """Model class → projector, from every file in `export/projectors`."""
    found: dict[str, Projector] = {}
    for path in sorted((Path(__file__).parent / "projectors").glob("*.py")):
        module = importlib.import_module(f"edgepack.export.projectors.{path.stem}")
        for projector in getattr(module, "PROJECTORS", None) or (module.PROJECTOR,):
            found |= dict.fromkeys(projector.classes, projector)
    return found


def find_projector(config: ModelConfig) -> Projector:
    """The projector of a model's configuration.

    Raises:
        UnsupportedModelError: the model has none, llama.cpp has none of its kind, or edgepack knows none.
    """
    name = config.architecture
    if name in WITHOUT_PROJECTOR:
        raise UnsupportedModelError(f"{name}: the installed llama.cpp has no projector of this kind")
    if not isinstance(config.get("vision_config"), dict):
        raise UnsupportedModelError(f"--mmproj: expected a model that sees, got {name} without vision_config")
    if name not in projectors():
        raise UnsupportedModelError(
            f"--mmproj: unknown projector of '{name}': llama.cpp's convert_hf_to_gguf.py --mmproj may make one, which"
            f" `edgepack pack MODEL.gguf --mmproj FILE` takes; known: {', '.join(sorted(projectors()))}"
        )
    return projectors()[name]


@dataclass(frozen=True)
class MappedProjector:
    """What of a model sees, as a GGUF will hold it.

    Attributes:
        model: metadata and tensors.
        projector: the data that it was made by.
        text_width: of the embeddings that it gives, for the model that reads them.
    """

    model: MappedModel
    projector: Projector
    text_width: int


def map_projector(checkpoint: Checkpoint) -> MappedProjector:
    """What sees of a checkpoint, under clip.cpp's names; reads headers and configurations, no weights.

    Raises:
        CheckpointError: missing or ill-shaped tensors, or a configuration without a needed key.
        UnsupportedModelError: a model that does not see, or a setting that llama.cpp cannot honour.
    """
    whole = ModelConfig(checkpoint.config, folder=checkpoint.path)
    projector = find_projector(whole)
    config = vision_config(whole, projector)
    other = projector.instead(config)
    if isinstance(other, Projector):
        projector, config = other, vision_config(whole, other)
    config = completed(config, projector)
    keys_of_clip = projector.metadata(config)
    projector = replace(projector, tensors=(*projector.tensors, *projector.listed(config)))
    tensors = map_tensors(projector, config, checkpoint.tensors)
    refuse_integers(tensors)
    metadata = {keys.ARCHITECTURE: string(keys.PROJECTOR_ARCHITECTURE)}
    metadata |= general_metadata(checkpoint.path, keys.PROJECTOR_ARCHITECTURE, size_of(tensors), kind="mmproj")
    metadata |= keys_of_clip
    facts = ModelFacts(keys.PROJECTOR_ARCHITECTURE, config.n_layers, config.n_heads, config.n_heads)
    model = MappedModel(str(checkpoint.path), metadata, tensors, facts, notes=projector.remarks(config))
    return MappedProjector(model, projector, config.count(TEXT_WIDTH))


def vision_config(whole: ModelConfig, projector: Projector) -> ModelConfig:
    """The vision tower's settings, with what the projector needs of those beside them and of the preprocessor's.

    Raises:
        CheckpointError: a file or a part of one is no object.
    """
    eyes = whole.get("vision_config")
    lifted = {name: whole.get(name) for name in projector.lifted if whole.get(name) is not None}
    text = whole.of_text()
    values = {
        "architectures": whole.values.get("architectures"),
        **lifted,
        **eyes,
        TEXT_WIDTH: text.hidden,
        PREPROCESSOR: _preprocessor(whole.folder),
        "text": dict(text.values),
    }
    return ModelConfig(values, label=f"{whole.label}: vision_config", folder=whole.folder)


def _preprocessor(folder: Path | None) -> dict[str, Any]:
    """What the files say of how images become numbers; empty without any."""
    found: dict[str, Any] = {}
    for name in _PREPROCESSOR_FILES:
        if folder is None or not (folder / name).is_file():
            continue
        said = read_json(folder / name)
        nested = said.get("image_processor", {})
        if not isinstance(nested, dict):
            raise CheckpointError(f"{folder / name}: image_processor: expected an object, got {nested!r}")
        found |= {**said, **nested}
    return found


def projector_type(name: str) -> str:
    """One of `PROJECTOR_TYPES` by any of its spellings (`q8`, `F16`, `gguf-bf16`); raises UsageError for none."""
    word = name.lower().removeprefix("gguf-")
    word = {"q8": "q8_0"}.get(word, word)
    if word not in PROJECTOR_TYPES:
        raise UsageError(f"--mmproj-type: expected {', '.join(PROJECTOR_TYPES)}, got '{name}'")
    return word


def plan_projector(mapped: MappedProjector, kind: str) -> ExportPlan:
    """Every tensor's type and place, by the rules of llama.cpp's converter.

    Args:
        mapped: what sees.
        kind: one of `PROJECTOR_TYPES`.
    """
    target, model = find_target(kind), mapped.model
    tensors = tuple(
        PlannedTensor(TensorInfo(name, rows.shape, _type_of(name, rows, target.default, mapped.projector)), rows)
        for name, rows in model.tensors.items()
    )
    types = {keys.QUANTIZATION_VERSION: u32(QUANTIZATION_VERSION), keys.FILE_TYPE: u32(target.file_type)}
    metadata: Mapping[str, Value] = {**model.metadata, **types}
    return ExportPlan(model.label, target, metadata, tensors, model.sources)


def _type_of(name: str, rows: Rows, wanted: GGMLType, projector: Projector) -> GGMLType:
    """Vectors and what the graph reads as floats stay f32; what a block does not divide becomes f16."""
    if len(rows.shape) < 2 or any(re.search(pattern, name) for pattern in projector.floats):
        return GGMLType.F32
    if any(re.search(pattern, name) for pattern in projector.halves):
        return GGMLType.F16 if wanted is GGMLType.F16 else GGMLType.F32
    return wanted if rows.shape[-1] % wanted.block_size == 0 else GGMLType.F16
