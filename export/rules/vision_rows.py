"""Rows of projectors that differ between Hugging Face and clip.cpp: kernels of frames, pixels, fused q k v, a token's.

Which projector needs them is data in `export/projectors`.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from edgepack.errors import CheckpointError
from edgepack.export.arranged_rows import PickedRows, ReshapedRows, SlicedRows
from edgepack.export.json_file import read_json
from edgepack.export.row_functions import PermutedColumns, RefoldedRows
from edgepack.export.rules.family import Origin, TensorRule

if TYPE_CHECKING:
    from edgepack.export.config import ModelConfig
    from edgepack.export.rows import Rows
    from edgepack.export.rules.family import Transform


def frame_rules(source: str) -> tuple[TensorRule, ...]:
    """Both halves of a convolution over two frames; an image is two equal ones."""
    return (
        TensorRule("v.patch_embd.weight", source, "d 3 p p", _first_frame),
        TensorRule("v.patch_embd.weight.1", source, "d 3 p p", _second_frame),
    )


def _frame(rows: Rows, number: int) -> Rows:
    """HF: [d, 3, 2, p, p] → ggml, twice: {p, p, 3, d}."""
    if len(rows.shape) != 5 or rows.shape[2] != 2:
        return rows
    width, channels, _frames, height, columns = rows.shape
    order = np.arange(prod(rows.shape[:-1])).reshape(width, channels, 2, height)[:, :, number].reshape(-1)
    flat = RefoldedRows(rows, (prod(rows.shape[:-1]), columns))
    return ReshapedRows(PickedRows(flat, order), (width, channels, height, columns))


def _first_frame(rows: Rows, _config: ModelConfig) -> Rows:
    return _frame(rows, 0)


def _second_frame(rows: Rows, _config: ModelConfig) -> Rows:
    return _frame(rows, 1)


def patches_by_pixel(rows: Rows, config: ModelConfig) -> Rows:
    """HF's matrix over pixels with their colours beside each other, [d, p · p · 3] → a kernel, ggml: {p, p, 3, d}."""
    side = config.count("patch_size")
    if rows.shape != (rows.shape[0], side * side * 3):
        return rows
    order = np.arange(side * side * 3).reshape(side, side, 3).transpose(2, 0, 1).reshape(-1)
    return RefoldedRows(PermutedColumns(rows, order), (rows.shape[0], 3, side, side))


def split_rules(source: str) -> tuple[TensorRule, ...]:
    """q, k and v out of one matrix and one bias that hold them one below the other."""
    return tuple(
        TensorRule(f"v.blk.{{i}}.attn_{part}.{kind}", f"{source}.{kind}", shape, transform)
        for part, transform in (("q", _third(0)), ("k", _third(1)), ("v", _third(2)))
        for kind, shape in (("weight", "d d"), ("bias", "d"))
    )


def _third(number: int) -> Transform:
    def sliced(rows: Rows, config: ModelConfig) -> Rows:
        width = config.hidden
        return SlicedRows(rows, number * width, (number + 1) * width) if rows.shape[0] == 3 * width else rows

    return sliced


def token_row(config: ModelConfig, token: str, target: str) -> TensorRule:
    """The embedding of one token of the model's vocabulary as a vector.

    Raises:
        CheckpointError: no tokenizer lies beside the model, or it has no such token.
    """
    number = _token_id(config, token)

    def row(rows: Rows, _config: ModelConfig) -> Rows:
        if len(rows.shape) != 2 or number >= rows.shape[0]:
            return rows
        return ReshapedRows(PickedRows(rows, np.array([number])), (rows.shape[1],))

    return TensorRule(target, "model.language_model.embed_tokens.weight", "t", row, alternatives=(
        Origin("language_model.model.embed_tokens.weight", row),
    ))  # fmt: skip


def _token_id(config: ModelConfig, token: str) -> int:
    folder = config.folder
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{config.label}: the projector needs the token {token}: expected tokenizer.json beside it"
        )
    file = read_json(folder / "tokenizer.json")
    added, model = file.get("added_tokens"), file.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found = vocabulary.get(token) if isinstance(vocabulary, dict) else None
    for each in added if isinstance(added, list) else []:
        if isinstance(each, dict) and each.get("content") == token:
            found = each.get("id")
    if type(found) is not int or found < 0:
        raise CheckpointError(f"{folder / 'tokenizer.json'}: expected the token {token}, found none")
    return found
