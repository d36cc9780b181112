"""auto-round: GPTQ's or AutoAWQ's packing, with settings of its own for some modules (`extra_config`).

Layout: https://github.com/intel/auto-round (`export_to_autoround`). Packing `auto_round:auto_gptq` stores zero points
less one, `auto_round:gptqmodel` and `auto_round` as they are, `auto_round:auto_awq` is AutoAWQ's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.errors import UnsupportedModelError
from edgepack.export.formats.awq import find_packed_columns
from edgepack.export.formats.by_module import auto_round_settings
from edgepack.export.formats.gptq import find_packed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.export.formats.packed import PackedWeight, RawTensors

_DEFAULT = "auto_round:auto_gptq"  # AutoRoundConfig of transformers, convert_hf_model of auto-round
_AWQ = ("auto_round:awq", "auto_round:auto_awq")
_ZEROS = {"auto": "gptq", "auto_round:gptq": "gptq", _DEFAULT: "gptq", "auto_round:gptqmodel": "gptq_v2",
          "auto_round": "gptq_v2"}  # fmt: skip
_INTEGERS = ("int", "int_sym", "int_asym", "int_asym_dq", None)


def find_auto_round(source: RawTensors, config: Mapping[str, Any]) -> Sequence[PackedWeight]:
    """Every packed weight of an auto-round checkpoint, each by its module's own settings.

    Raises:
        UnsupportedModelError: another packing, or weights that are no integers.
        CheckpointError: bits or shapes that contradict each other.
    """
    packing = str(config.get("packing_format") or _DEFAULT)
    if config.get("data_type") not in _INTEGERS:
        raise UnsupportedModelError(f"auto-round checkpoint: expected data_type int, got {config['data_type']!r}")
    if packing in _AWQ:
        return find_packed_columns(source, config, auto_round_settings)
    if packing not in _ZEROS:
        known = ", ".join((*_ZEROS, *_AWQ))
        raise UnsupportedModelError(f"auto-round checkpoint: expected packing_format {known}, got {packing!r}")
    return find_packed(source, {**config, "checkpoint_format": _ZEROS[packing]}, auto_round_settings, range(2, 9))
