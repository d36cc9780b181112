"""Decides how a checkpoint's weights are stored, and gives them as ordinary float tensors.

Each format has a module of its own; a checkpoint without quantisation passes through untouched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import UnsupportedModelError
from edgepack.export.formats.auto_round import find_auto_round
from edgepack.export.formats.awq import find_awq
from edgepack.export.formats.bitnet import find_bitnet
from edgepack.export.formats.bitsandbytes import find_bitsandbytes
from edgepack.export.formats.compressed_tensors import find_compressed
from edgepack.export.formats.float8 import block_size, find_scaled, hidden_scales
from edgepack.export.formats.gptq import find_gptq
from edgepack.export.formats.mxfp4 import find_mxfp4
from edgepack.export.formats.packed import DequantizedTensors, PackedWeight, RawTensors
from edgepack.export.formats.vptq import find_vptq

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgepack.model import TensorSource

    Finder = Callable[[RawTensors, Mapping[str, Any]], Sequence[PackedWeight]]


def _find_float8(source: RawTensors, config: Mapping[str, Any]) -> Sequence[PackedWeight]:
    return find_scaled(source, block_size(config), scaled=bool(config))


FORMATS: Mapping[str, Finder] = {
    "auto-round": find_auto_round,
    "awq": find_awq,
    "gptq": find_gptq,
    "bitsandbytes": find_bitsandbytes,
    "bitnet": find_bitnet,
    "compressed-tensors": find_compressed,
    "vptq": find_vptq,
    "mxfp4": find_mxfp4,
    "fp8": _find_float8,
    "fbgemm-fp8": _find_float8,
}
"""`quant_method` → what finds its packed weights."""


def dequantized(source: RawTensors, config: Mapping[str, Any]) -> TensorSource:
    """`source` with packed weights as floats.

    Args:
        source: the stored tensors.
        config: parsed `config.json`.

    Returns:
        `source` itself when nothing is packed.

    Raises:
        UnsupportedModelError: an unknown method, or a layout of it that is not known.
        CheckpointError: stored tensors that contradict each other or the configuration.
    """
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        weights = _find_float8(source, {})
        return DequantizedTensors(source, weights) if weights else source
    method = str(settings.get("quant_method", "")).replace("_", "-").removeprefix("intel/")
    if method not in FORMATS:
        raise UnsupportedModelError(
            f"quantised checkpoint: method {method!r} is not known; known: {', '.join(FORMATS)}"
        )
    return DequantizedTensors(source, FORMATS[method](source, settings), hidden_scales(source))
