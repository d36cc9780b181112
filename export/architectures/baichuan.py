"""Baichuan 1 and 2: Llama with q, k and v in one matrix; the 13B has alibi in place of rope.

The head of the second is normalised row by row before it is used (`NormHead` of its own code).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.export.arranged_rows import SlicedRows
from edgepack.export.row_functions import MappedRows
from edgepack.export.rules.decoder import (
    LAYER,
    LLAMA_NORMS,
    SILU,
    WHOLE_HEADS,
    feed_forward_rules,
    norm_rules,
)
from edgepack.export.rules.family import Family, Requirement, TensorRule
from edgepack.export.rules.metadata import common_metadata
from edgepack.export.rules.permutations import interleave_keys, interleave_queries

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Matrix, Rows
    from edgepack.export.rules.family import Transform
    from edgepack.gguf.types import Value

_PACKED = LAYER + "self_attn.W_pack.weight"
_SIZES = (32, 40)  # layers of the 7B, with rope, and of the 13B, with alibi
_SECOND = "z_loss_weight"  # a setting that the second generation has
_LEAST_LENGTH = 1e-12  # of torch.nn.functional.normalize


def _metadata(config: ModelConfig) -> dict[str, Value]:
    return common_metadata(config, "baichuan", rope_types=("default",))


def _part(number: int, order: Transform | None = None) -> Transform:
    """The first, second or third of the three matrices, in the order of rope where it has one."""

    def part(rows: Rows, config: ModelConfig) -> Rows:
        third = rows.shape[0] // 3
        sliced = SlicedRows(rows, number * third, (number + 1) * third)
        return sliced if order is None or config.n_layers != _SIZES[0] else order(sliced, config)

    return part


def _normalised(rows: Matrix) -> Matrix:
    lengths = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    scaled: Matrix = (rows / np.maximum(lengths, _LEAST_LENGTH)).astype(np.float32)
    return scaled


def _head(rows: Rows, config: ModelConfig) -> Rows:
    return MappedRows(rows, _normalised) if _SECOND in config.values else rows


FAMILY = Family(
    name="baichuan",
    classes=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    spellings={"max_position_embeddings": "model_max_length"},
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 4096},
    metadata=_metadata,
    requirements=(
        SILU,
        WHOLE_HEADS,
        Requirement("num_hidden_layers", _SIZES, "its graph knows the 7B and the 13B by their layers"),
        Requirement("tie_word_embeddings", (False,), "its graph needs a head"),
    ),
    tensors=(
        TensorRule("token_embd.weight", "model.embed_tokens.weight", "v d"),
        TensorRule("output_norm.weight", "model.norm.weight", "d"),
        TensorRule("output.weight", "lm_head.weight", "v d", _head),
        *norm_rules(LLAMA_NORMS),
        TensorRule("blk.{i}.attn_q.weight", _PACKED, "d d", _part(0, interleave_queries)),
        TensorRule("blk.{i}.attn_k.weight", _PACKED, "d d", _part(1, interleave_keys)),
        TensorRule("blk.{i}.attn_v.weight", _PACKED, "d d", _part(2)),
        TensorRule("blk.{i}.attn_output.weight", LAYER + "self_attn.o_proj.weight", "d d"),
        *feed_forward_rules(),
    ),
)
