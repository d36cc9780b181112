"""Opens a Hugging Face folder as named lazy tensors with a configuration; it reads no weights.

Which files hold them is decided in `export.weight_files`. What the tensors mean is left to `export.architectures`,
the tokenizer to `export.tokenizer`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError
from edgepack.export.formats.packed import DequantizedTensors
from edgepack.export.formats.quantized_checkpoint import dequantized
from edgepack.export.json_file import read_json
from edgepack.export.sentence_modules import transformer_folder
from edgepack.export.ties import settle_ties
from edgepack.export.weight_files import ShardedTensors, WeightFolder, open_weights, refuse_other_folder
from edgepack.file_kinds import describe_file
from edgepack.model import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.files.remote import RemoteFile

__all__ = ["ShardedTensors", "open_checkpoint", "read_json"]


def open_checkpoint(path: Path, remote: Mapping[str, RemoteFile] | None = None) -> Checkpoint:
    """Open the Hugging Face folder `path`; only headers are read.

    Args:
        path: of the folder.
        remote: name → file of weights that lie where a URL leads, not in it.

    Raises:
        CheckpointError: the folder, its configuration or a shard is missing, truncated or inconsistent.
    """
    if not path.is_dir():
        what = describe_file(path)
        got = f"a file, {what}" if what else "a file" if path.exists() else "nothing there"
        raise CheckpointError(f"model '{path}': expected a folder with config.json and safetensors, got {got}")
    if not (path / "config.json").is_file():
        path = transformer_folder(path) or path
    refuse_other_folder(path)
    config, notes = _with_quantization(read_json(path / "config.json"), path)
    weights = open_weights(WeightFolder(path, remote or {}), config)
    tensors = dequantized(weights.tensors, config)
    if isinstance(tensors, DequantizedTensors) and not tensors.packed:
        method = config["quantization_config"].get("quant_method")
        notes += (f"quantisation: config.json says {method!r}, but no tensor is packed: they are taken as they are",)
    checkpoint = settle_ties(Checkpoint(path, config, tensors, weights.notes + notes))
    return _with_own_adapter(checkpoint)


def _with_own_adapter(checkpoint: Checkpoint) -> Checkpoint:
    """With the adapter that lies in the model's own folder merged, as transformers loads such a folder."""
    folder = checkpoint.path
    if not (folder / "adapter_config.json").is_file():
        return checkpoint
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        note = "adapter: adapter_config.json lies beside the model without weights: passed over"
        return replace(checkpoint, notes=(*checkpoint.notes, note))
    from edgepack.export.lora.merging import merge_adapter

    note = "adapter: the one that lies in the model's own folder is merged, as transformers does"
    return merge_adapter(replace(checkpoint, notes=(*checkpoint.notes, note)), folder)


def _with_quantization(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The configuration, with what older GPTQ and AWQ checkpoints keep in a file of their own; config.json decides."""
    for name in ("quantize_config.json", "quant_config.json"):
        if not (folder / name).is_file():
            continue
        own, settings = read_json(folder / name), config.get("quantization_config")
        if not isinstance(settings, dict):
            method = "gptq" if name.startswith("quantize") else "awq"
            return {**config, "quantization_config": {"quant_method": method, **own}}, ()
        other = sorted(key for key in own.keys() & settings.keys() if own[key] != settings[key])
        if other:
            return config, (f"quantisation: {other[0]} is config.json's {settings[other[0]]!r}, not {name}'s",)
    return config, ()
