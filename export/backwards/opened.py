"""A GGUF opened as the checkpoint that it could have been made of: configuration, names and rows read backwards.

The families' data are those of the export; what they make of the answer is held against the file, so that a wrong
answer is refused, not given. The tokenizer is `export.backwards.vocabulary`'s, writing a folder `written`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import CheckpointError, UnsupportedModelError
from edgepack.export.backwards.agreement import disagreement
from edgepack.export.backwards.classes import ModelClass
from edgepack.export.backwards.settings import shared_settings
from edgepack.export.backwards.undone import undone
from edgepack.export.config import ModelConfig
from edgepack.export.rows import ArrayRows
from edgepack.export.rules.backwards import Header
from edgepack.export.rules.mapping import completed, families, find_family, map_tensors, observed, prepared
from edgepack.export.rules.rope_backwards import rope_settings
from edgepack.gguf import keys
from edgepack.model import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from edgepack.export.backwards.classes import Described
    from edgepack.export.mapped import MappedModel
    from edgepack.export.rows import Rows
    from edgepack.export.rules.family import Family
    from edgepack.gguf.types import Value

_FLOATS = ("f32", "f16", "bf16")
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class RowTensors:
    """Tensors that are rows: a `TensorSource`.

    Attributes:
        rows: name → rows; of quantised ones the floats that they stand for.
    """

    rows: Mapping[str, Rows]

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor."""
        return {
            name: TensorSpec(name, rows.shape, rows.dtype if rows.dtype in _FLOATS else "f32")
            for name, rows in self.rows.items()
        }

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `TensorSource.read_rows`."""
        rows = self.rows[name]
        return np.array(rows.read(start, stop)).reshape(stop - start, rows.shape[-1] if rows.shape else 1)


@dataclass(frozen=True)
class _Shapes:
    """Tensors of which only names and shapes are known: a `TensorSource` that is never read."""

    specs: Mapping[str, TensorSpec]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Nothing."""
        raise NotImplementedError(name)


@dataclass(frozen=True)
class Original:
    """What a GGUF was made of.

    Attributes:
        config: config.json.
        tensors: checkpoint name → rows.
        metadata: of the GGUF, without what the checkpoint does not have.
        notes: a line for each thing that the GGUF does not have, or the checkpoint.
    """

    config: dict[str, Any]
    tensors: Mapping[str, Rows]
    metadata: Mapping[str, Value]
    notes: tuple[str, ...] = ()


def original_of(model: MappedModel) -> Original:
    """The checkpoint's configuration and tensors.

    Args:
        model: a GGUF, mapped as it is.

    Raises:
        UnsupportedModelError: its architecture or one of its settings cannot be read backwards; the sentence says why.
        DependencyError: transformers is not installed.
    """
    name = str(model.metadata[keys.ARCHITECTURE].value)
    shapes = {tensor: rows.shape for tensor, rows in model.tensors.items()}
    whole = Header(name, model.metadata, shapes, lambda tensor: model.tensors[tensor].read(0, 1)[0])
    header, tensors, notes = _trunk(whole, model.tensors)
    reasons: list[str] = []
    for class_name, family in _classes(header):
        found = _attempt(header, tensors, class_name, family)
        if isinstance(found, Original):
            return replace(found, notes=(*notes, *found.notes))
        reasons.append(found)
    if not reasons:
        reasons = [f"architecture '{name}': edgepack has no family of checkpoints that becomes it"]
    raise UnsupportedModelError(f"{model.label}: cannot be read back into a checkpoint: {reasons[0]}")


def _attempt(header: Header, tensors: Mapping[str, Rows], class_name: str, family: Family) -> Original | str:
    """The answer for a class, or why it is none."""
    try:
        return _original(header, tensors, ModelClass(class_name), family)
    except (UnsupportedModelError, CheckpointError) as error:
        return str(error)


def _trunk(header: Header, tensors: Mapping[str, Rows]) -> tuple[Header, Mapping[str, Rows], tuple[str, ...]]:
    """The model without its layers of prediction, which transformers has no place for."""
    extra = header.count("nextn_predict_layers")
    if not extra:
        return header, tensors, ()
    blocks = header.count("block_count")
    key = f"{header.name}.block_count"
    metadata = {name: value for name, value in header.metadata.items() if not name.endswith("nextn_predict_layers")}
    for name, value in metadata.items():
        if name.startswith(f"{header.name}.") and isinstance(value.value, list) and len(value.value) == blocks:
            metadata[name] = replace(value, value=value.value[:-extra])
    metadata[key] = replace(metadata[key], value=blocks - extra)
    kept = {
        name: rows
        for name, rows in tensors.items()
        if (match := _BLOCK.match(name)) is None or int(match[1]) < blocks - extra
    }
    shapes = {name: rows.shape for name, rows in kept.items()}
    note = f"{extra} layers of prediction are left out: transformers' classes have none"
    return replace(header, metadata=metadata, shapes=shapes), kept, (note,)


def _classes(header: Header) -> Iterator[tuple[str, Family]]:
    """Model classes that may become the architecture; those that read and write text alone first."""
    found = [
        (name, family)
        for name, family in families().items()
        if header.name in (family.name, *family.backwards.architectures)
    ]
    embeds = header.get("pooling_type") is not None
    ends = ("Model", "ForSequenceClassification") if embeds else ("ForCausalLM", "LMHeadModel")
    yield from sorted(found, key=lambda each: (each[1].nested, not each[0].endswith(ends)))


def _original(header: Header, tensors: Mapping[str, Rows], model: ModelClass, family: Family) -> Original:
    """The answer for one class; raises UnsupportedModelError where it does not fit."""
    if family.nested:
        raise UnsupportedModelError(f"{model.name} sees as well, and a GGUF of it holds the part that reads text alone")
    described = _described(header, model, family)
    published = ModelConfig(described.config)
    family = find_family(published)
    config = observed(completed(published, family), family, described.specs)
    if family.name != header.name:
        raise UnsupportedModelError(f"{model.name} with its settings becomes {family.name}")
    made = family.metadata(config)
    expressions = map_tensors(family, config, _Shapes(described.specs))
    reason = disagreement(header, made) or _other_tensors(expressions, tensors)
    if reason is not None:
        raise UnsupportedModelError(reason)
    values = {name: tensors[name] if name in tensors else _zeros(rows) for name, rows in expressions.items()}
    found = undone(expressions, values)
    if found.incomplete:
        raise UnsupportedModelError(f"tensor '{min(found.incomplete)}': the GGUF has only a part of it")
    stored = {
        name: ArrayRows(array.reshape(described.specs[name].shape))
        for name, array in family.backwards.stored(header).items()
        if name in described.specs
    }
    every = {**found.tensors, **stored}
    left = [name for name in described.specs if name not in every]
    needed = [name for name in left if not _matches(name, (*family.unused, *family.superfluous(config)))]
    if needed:
        raise UnsupportedModelError(f"tensor '{needed[0]}' of {model.name} is not in the GGUF")
    notes = (
        (f"{len(left)} tensors of {model.name} that llama.cpp does not use are absent: '{left[0]}'",) if left else ()
    )
    rows = {name: every[name] for name in described.specs if name in every}
    return Original(described.config, rows, header.metadata, notes)


def _described(header: Header, model: ModelClass, family: Family) -> Described:
    """The class with the settings that the metadata imply; what llama.cpp's graph takes for granted is set too."""
    settings = shared_settings(header, model.known)
    own = dict(family.backwards.settings(header))
    if "rope_parameters" in model.known and "rope_parameters" not in own:
        width = own.get("head_dim") or header.count("attention.key_length") or header.even_width
        settings["rope_parameters"] = rope_settings(header, width)
    settings |= own
    described = model.describe(settings)
    config = ModelConfig(described.config)
    family = find_family(config)
    config = prepared(config, family)
    for requirement in family.requirements:
        if requirement.violation(config) is not None and not requirement.keys[0].startswith("rope_parameters."):
            allowed = requirement.allowed(config) if callable(requirement.allowed) else requirement.allowed
            name = next((key for key in requirement.keys if key in model.known), None)
            if name is not None:
                settings[name] = allowed[0] if allowed else None
    return model.describe(settings)


def _other_tensors(expressions: Mapping[str, Rows], tensors: Mapping[str, Rows]) -> str | None:
    """What the file has and the class does not, or the other way round, as a sentence."""
    surplus = next((name for name in tensors if name not in expressions), None)
    if surplus is not None:
        return f"tensor '{surplus}': its class has no place for it"
    for name, rows in expressions.items():
        if name not in tensors and not name.endswith(".bias"):
            return f"tensor '{name}' is not in the GGUF"
        if name in tensors and tensors[name].shape != rows.shape:
            return f"tensor '{name}' is {list(tensors[name].shape)}, its settings make {list(rows.shape)} of it"
        if name in tensors and isinstance(rows, ArrayRows) and name.startswith("rope_"):
            found, made = tensors[name].read(0, 1), rows.read(0, 1)
            if not np.allclose(found, made, rtol=1e-5):
                return f"tensor '{name}': no rule of transformers gives these factors"
    return None


def _zeros(rows: Rows) -> Rows:
    """A bias that is not there."""
    return ArrayRows(np.broadcast_to(np.float32(0), rows.shape or (prod(rows.shape),)))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
