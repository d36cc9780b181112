"""The GGUF variant: names and metadata of coded tensors, as packaging/VARIANT.md specifies them.

The only code that knows those keys. What the components mean is left to `edgepack.quant.codecs`; writing
and decoding files to `export` and `edge`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite, prod
from typing import TYPE_CHECKING, Any, TypeAlias

from edgepack.errors import CodecError
from edgepack.files.source import as_object
from edgepack.gguf import keys
from edgepack.gguf.types import GGMLType, TensorInfo, Value, ValueType, array, string, u32

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.gguf.reader import GGUFHeader

VERSION = 1
MAX_STAGES = 8
MAX_DESCRIPTION_BYTES = 1 << 16
MAX_DIMENSION = 1 << 40
_FREE_WEIGHTS, _MOST_EXPANSION = 4 << 20, 256  # a file codes so many weights, and so many for each of its bytes
# ggml's GGML_MAX_NAME is 64 with the terminating zero; readers refuse longer names.
MAX_NAME_BYTES = 63
# A vector's entry in the header beside its name: lengths of name and vector, dimensions, type, offset.
_INFO_BYTES = 8 + 8 + 4 + 4 + 8
# The component types of the variant; unsigned numbers lie in the signed type of their width.
DTYPES: dict[GGMLType, str] = {
    GGMLType.I8: "uint8",
    GGMLType.I16: "uint16",
    GGMLType.I32: "int32",
    GGMLType.F16: "float16",
    GGMLType.F32: "float32",
}
TYPES = {dtype: kind for kind, dtype in DTYPES.items()}

Parameter = bool | int | float | str
Components: TypeAlias = "Mapping[str, Mapping[str, TensorInfo]]"


@dataclass(frozen=True)
class Stage:
    """One codec's part of a tensor; the parts of all stages are added up.

    Attributes:
        codec: its name.
        version: of the codec's bytes.
        parameters: what its decoder needs beside the arrays.
        components: suffix → the tensor in the file that holds it.
    """

    codec: str
    version: int
    parameters: Mapping[str, Parameter]
    components: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class CodedTensor:
    """A matrix that the file holds as components.

    Attributes:
        name: of the matrix in the plain GGUF.
        shape: row-major, of the matrix.
        native: the type that it becomes on the device unless another is asked for.
        error: ‖W - Ŵ‖² / ‖W‖², as the publisher measured it.
        stages: at least one.
        spaces: that follow its description, so that the length of the header does not depend on weights.
    """

    name: str
    shape: tuple[int, ...]
    native: GGMLType
    error: float
    stages: tuple[Stage, ...]
    spaces: int = 0

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns), the leading dimensions folded into the rows."""
        return prod(self.shape[:-1]), self.shape[-1]

    @property
    def components(self) -> tuple[TensorInfo, ...]:
        """The tensors of the file that hold it, stage by stage."""
        return tuple(info for stage in self.stages for info in stage.components.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of all components."""
        return sum(info.nbytes for info in self.components)


@dataclass(frozen=True)
class Variant:
    """What a GGUF of the variant holds.

    Attributes:
        header: of the file.
        tensors: the tensors of the plain GGUF, in its order: coded ones, or entries of the header.
    """

    header: GGUFHeader
    tensors: tuple[CodedTensor | TensorInfo, ...]

    @property
    def coded(self) -> tuple[CodedTensor, ...]:
        """Only the coded ones."""
        return tuple(tensor for tensor in self.tensors if isinstance(tensor, CodedTensor))

    @property
    def plain_metadata(self) -> dict[str, Value]:
        """The metadata of the plain GGUF: all keys but the variant's own."""
        return {key: value for key, value in self.header.metadata.items() if not key.startswith(keys.VARIANT)}


def component_name(tensor: str, stage: int, codec: str, component: str) -> str:
    """Name in the file, such as `blk.0.attn_q.weight.seedlm.seeds`; later stages carry their number.

    Raises:
        CodecError: longer than readers accept.
    """
    prefix = tensor if stage == 0 else f"{tensor}.{stage}"
    name = f"{prefix}.{codec}.{component}"
    if len(name.encode()) > MAX_NAME_BYTES:
        raise CodecError(f"tensor '{name}': expected a name of at most {MAX_NAME_BYTES} bytes")
    return name


def variant_metadata(coded: Sequence[CodedTensor]) -> dict[str, Value]:
    """The variant's own keys for these tensors."""
    metadata = {
        keys.VARIANT_VERSION: u32(VERSION),
        keys.VARIANT_TENSORS: array(ValueType.STRING, [tensor.name for tensor in coded]),
    }
    return metadata | {keys.VARIANT_TENSOR + tensor.name: string(_description(tensor)) for tensor in coded}


def _description(tensor: CodedTensor) -> str:
    stages = [
        {"codec": stage.codec, "version": stage.version, "parameters": dict(stage.parameters)}
        for stage in tensor.stages
    ]
    fields = {"shape": list(tensor.shape), "native": tensor.native.name, "error": tensor.error, "stages": stages}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False) + " " * tensor.spaces


def header_bytes(tensor: CodedTensor) -> int:
    """What a coded tensor takes in the file's header, but for what its name alone decides."""
    names = sum(len(info.name.encode()) + _INFO_BYTES for info in tensor.components)
    return len(_description(tensor).encode()) + names


def is_variant(header: GGUFHeader) -> bool:
    """Whether a GGUF says that it is of the variant."""
    return keys.VARIANT_VERSION in header.metadata


def read_variant(header: GGUFHeader) -> Variant:
    """The coded tensors of a GGUF of the variant; no tensor data is read.

    Raises:
        CodecError: made by a newer edgepack, or a description that contradicts itself or the file.
    """
    version = header.get(keys.VARIANT_VERSION)
    if version is None:
        raise CodecError(f"{header.path}: not of the variant: it has no '{keys.VARIANT_VERSION}'")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        raise CodecError(f"{header.path}: made by a newer edgepack: variant version {version!r}, known up to {VERSION}")
    names = header.get(keys.VARIANT_TENSORS)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise CodecError(f"{header.path}: '{keys.VARIANT_TENSORS}': expected an array of different strings")
    components = _components(header)
    coded = {name: _read_tensor(header, name, components) for name in names}
    owner = {
        info.name: tensor for tensor in coded.values() for stage in tensor.stages for info in stage.components.values()
    }
    weights = sum(prod(tensor.shape) for tensor in coded.values())
    if weights > _FREE_WEIGHTS + _MOST_EXPANSION * header.file_bytes:  # before anything is decoded
        raise CodecError(f"{header.path}: {weights} coded weights in a file of {header.file_bytes} bytes")
    ordered = {owner[info.name].name if info.name in owner else info.name: None for info in header.tensors}
    # A coded tensor without any component in the file comes last: its decoder says what is missing.
    ordered |= dict.fromkeys(coded)
    for name in coded.keys() & {info.name for info in header.tensors}:
        raise CodecError(f"{header.path}: tensor '{name}' is stored both plain and coded")
    return Variant(header, tuple(coded[name] if name in coded else header.tensor(name) for name in ordered))


def _components(header: GGUFHeader) -> dict[str, dict[str, TensorInfo]]:
    """Every tensor of the file by the name up to its last dot, then by what follows."""
    found: dict[str, dict[str, TensorInfo]] = {}
    for info in header.tensors:
        prefix, _, component = info.name.rpartition(".")
        found.setdefault(prefix, {})[component] = info
    return found


def _read_tensor(header: GGUFHeader, name: str, components: Components) -> CodedTensor:
    where = f"{header.path}: tensor '{name}'"
    fields = _parse(header.get(keys.VARIANT_TENSOR + name), where)
    shape = fields.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4 or not all(map(_is_dimension, shape)):
        raise CodecError(f"{where}: expected a shape of 1 to 4 positive dimensions, got {shape!r}")
    native, error, stages = fields.get("native"), fields.get("error"), fields.get("stages")
    if not isinstance(native, str) or native not in GGMLType.__members__:
        raise CodecError(f"{where}: made by a newer edgepack: unknown native type {native!r}")
    if isinstance(error, bool) or not isinstance(error, int | float) or not isfinite(error) or error < 0:
        raise CodecError(f"{where}: expected a finite error, got {error!r}")
    if not isinstance(stages, list) or not 1 <= len(stages) <= MAX_STAGES:
        raise CodecError(f"{where}: expected 1 to {MAX_STAGES} stages")
    read = tuple(_read_stage(header, (name, number), stage, components) for number, stage in enumerate(stages))
    return CodedTensor(name, tuple(shape), GGMLType[native], float(error), read)


def _is_dimension(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_DIMENSION


def _parse(text: Any, where: str) -> dict[str, Any]:
    """The JSON object in a description, bounded in length."""
    if not isinstance(text, str) or len(text) > MAX_DESCRIPTION_BYTES:
        raise CodecError(f"{where}: its description is missing or longer than {MAX_DESCRIPTION_BYTES} characters")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"{where}: its description is not JSON: {error}") from error
    return as_object(fields, where, CodecError)


def _read_stage(header: GGUFHeader, place: tuple[str, int], fields: Any, components: Components) -> Stage:
    """The stage at (tensor's name, number of the stage)."""
    name, number = place
    where = f"{header.path}: tensor '{name}', stage {number}"
    if not isinstance(fields, dict):
        raise CodecError(f"{where}: expected an object")
    codec, version, parameters = fields.get("codec"), fields.get("version"), fields.get("parameters")
    if not isinstance(codec, str) or not codec.isidentifier():
        raise CodecError(f"{where}: expected a codec's name, got {codec!r}")
    if not isinstance(version, int) or isinstance(version, bool):
        raise CodecError(f"{where}: expected a version, got {version!r}")
    if not isinstance(parameters, dict) or not all(isinstance(value, Parameter) for value in parameters.values()):
        raise CodecError(f"{where}: expected plain parameters")
    own = components.get(component_name(name, number, codec, "").rstrip("."), {})
    for info in own.values():
        if info.type not in DTYPES or len(info.shape) != 1:
            raise CodecError(
                f"{header.path}: component '{info.name}': expected one dimension of I8, I16, I32, F16, F32"
            )
    return Stage(codec, version, parameters, own)
