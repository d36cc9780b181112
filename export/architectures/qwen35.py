"""Qwen 3.5 and 3.6, dense and with experts: delta nets between layers of gated attention, and a layer of prediction.

Of the checkpoints with a vision tower, which all published ones are, the text part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import UnsupportedModelError
from edgepack.export.arranged_rows import PermutedRows
from edgepack.export.row_functions import PermutedColumns
from edgepack.export.rules import delta_net
from edgepack.export.rules.backwards import Backwards
from edgepack.export.rules.decoder import NO_ATTENTION_BIAS, SILU, embedding_rules, plus_one, squeezed
from edgepack.export.rules.delta_net import LINEAR, tiled_order
from edgepack.export.rules.family import BUFFERS, Family, TensorRule
from edgepack.export.rules.rope_backwards import rope_settings
from edgepack.gguf.types import Value, ValueType, array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.backwards import Header, Settings


def _sections(config: ModelConfig) -> list[int]:
    """Pairs of rope that count time, height and width in turn; in text the three are equal.

    Raises:
        UnsupportedModelError: sections that leave a pair out, which llama.cpp would not turn at all.
    """
    sections = config.rope.get("mrope_section") or [11, 11, 10]
    pairs = range(config.rotary_dim // 2)
    if (
        not isinstance(sections, list)
        or not 3 <= len(sections) <= 4
        or not all(type(each) is int and each >= 0 for each in sections)
        or not all(pair < 3 * sections[pair % 3] for pair in pairs)
    ):
        raise UnsupportedModelError(
            f"{config.label}: rope_parameters.mrope_section is {sections!r}: llama.cpp needs three counts that cover"
            f" {len(pairs)} pairs in turn, because its graph turns no other"
        )
    return [*sections, 0][:4]


def _keys(config: ModelConfig, name: str) -> dict[str, Value]:
    sections = array(ValueType.INT32, _sections(config))
    return delta_net.metadata(config, name) | {f"{name}.rope.dimension_sections": sections}


def _dense_metadata(config: ModelConfig) -> dict[str, Value]:
    return _keys(config, "qwen35")


def _expert_metadata(config: ModelConfig) -> dict[str, Value]:
    return _keys(config, "qwen35moe") | delta_net.expert_metadata(config, "qwen35moe")


def _order(config: ModelConfig, width: int) -> NDArray[np.intp]:
    groups = config.count("linear_num_key_heads")
    return tiled_order(groups, config.count("linear_num_value_heads") // groups, width)


def _heads(rows: Rows, config: ModelConfig) -> Rows:
    return PermutedRows(rows, _order(config, 1))


def _values(rows: Rows, config: ModelConfig) -> Rows:
    return PermutedRows(rows, _order(config, config.count("linear_value_head_dim")))


def _value_columns(rows: Rows, config: ModelConfig) -> Rows:
    return PermutedColumns(rows, _order(config, config.count("linear_value_head_dim")))


def _values_after_keys(rows: Rows, config: ModelConfig) -> Rows:
    keys = 2 * config.count("linear_num_key_heads") * config.count("linear_key_head_dim")
    values = _order(config, config.count("linear_value_head_dim"))
    return PermutedRows(rows, np.concatenate([np.arange(keys), keys + values]))


def _channels(rows: Rows, config: ModelConfig) -> Rows:
    return _values_after_keys(squeezed(rows, config), config)


_LINEAR = (
    TensorRule("blk.{i}.attn_qkv.weight", LINEAR + "in_proj_qkv.weight", "qkv d", _values_after_keys),
    TensorRule("blk.{i}.attn_gate.weight", LINEAR + "in_proj_z.weight", "lv d", _values),
    TensorRule("blk.{i}.ssm_beta.weight", LINEAR + "in_proj_b.weight", "nv d", _heads),
    TensorRule("blk.{i}.ssm_alpha.weight", LINEAR + "in_proj_a.weight", "nv d", _heads),
    *delta_net.state_rules(_heads, _channels, _value_columns),
)


def _settings(header: Header) -> Settings:
    rope = rope_settings(header, header.count("attention.key_length"))
    sections = header.get("rope.dimension_sections")[:3]
    return {**delta_net.settings(header), "rope_parameters": {**rope, "mrope_section": sections}}


DENSE = Family(
    name="qwen35",
    classes=("Qwen3_5ForCausalLM",),
    defaults={**delta_net.DEFAULTS, "num_key_value_heads": 4},
    metadata=_dense_metadata,
    backwards=Backwards(_settings),
    dimensions=delta_net.dimensions,
    blocks=delta_net.blocks,
    observed=delta_net.prediction_layers,
    renames=(("model.", "model.language_model."), ("mtp.", "model.mtp.")),
    unused=(*BUFFERS, r"^model\.visual\."),
    requirements=(SILU, NO_ATTENTION_BIAS, *delta_net.REQUIREMENTS),
    tensors=(*embedding_rules(plus_one), *delta_net.layer_rules(delta_net.DENSE, _LINEAR)),
)
EXPERTS = replace(
    DENSE,
    name="qwen35moe",
    classes=("Qwen3_5MoeForCausalLM",),
    defaults={
        **delta_net.DEFAULTS,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 8,
        "num_experts": 256,
    },
    metadata=_expert_metadata,
    tensors=(*embedding_rules(plus_one), *delta_net.layer_rules(delta_net.EXPERTS, _LINEAR)),
)
FAMILIES = (
    DENSE,
    EXPERTS,
    replace(DENSE, classes=("Qwen3_5ForConditionalGeneration",), nested=True),
    replace(EXPERTS, classes=("Qwen3_5MoeForConditionalGeneration",), nested=True),
)
