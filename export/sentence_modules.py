"""Reads what sentence-transformers does with a model's outputs: `modules.json` and the folders that it names.

It knows no GGUF: what of it llama.cpp has is decided in `export.rules.pooling`.
Format: https://github.com/huggingface/sentence-transformers (`base/model.py`, `sentence_transformer/modules`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError
from edgepack.export.json_file import read_json, read_json_list

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODULES = "modules.json"
_LONE_POOLING = "1_Pooling"  # models that were published without modules.json have it all the same
_SETTINGS = "config_sentence_transformers.json"
_TRANSFORMER_SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
)
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_WITHOUT_EFFECT = frozenset({"Dropout"})


@dataclass(frozen=True)
class Dense:
    """A linear layer after the pooling.

    Attributes:
        folder: with its configuration and weights.
        inner: numbers in.
        outer: numbers out.
        bias: whether it adds one.
        activation: the last part of the function's name, such as `Tanh`.
        residual: whether its input is added to its output.
    """

    folder: Path
    inner: int
    outer: int
    bias: bool
    activation: str
    residual: bool


@dataclass(frozen=True)
class SentenceModules:
    """What follows a transformer, in order.

    Attributes:
        modes: ways of pooling, whose results are put side by side; empty where nothing pools.
        include_prompt: whether the prompt's tokens are pooled too.
        dense: linear layers after the pooling.
        normalizes: whether embeddings are scaled to length 1.
        others: types of modules that are none of these.
        prompts: name → text before every input.
        default_prompt: the prompt that is taken when none is named.
        lowercases: texts are lower-cased before they are tokenised.
    """

    modes: tuple[str, ...] = ()
    include_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    normalizes: bool = False
    others: tuple[str, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    lowercases: bool = False


def transformer_folder(root: Path) -> Path | None:
    """Where `modules.json` of `root` keeps the transformer, if that is a folder below it; None elsewhere."""
    for kind, folder in _listed(root):
        if kind.endswith("Transformer"):
            return folder if folder != root and (folder / "config.json").is_file() else None
    return None


def read_modules(folder: Path) -> SentenceModules | None:
    """The modules of the model whose transformer lies in `folder`; None where it is no sentence-transformers model.

    Raises:
        CheckpointError: a file that is no JSON, a module without its folder, a setting of a wrong type.
    """
    root = folder if (folder / MODULES).is_file() or transformer_folder(folder.parent) != folder else folder.parent
    listed = _listed(root)
    if not listed:
        lone = folder / _LONE_POOLING
        if not (lone / "config.json").is_file():
            return None
        listed = [("Transformer", folder), ("Pooling", lone)]
    poolings = [path for kind, path in listed if kind == "Pooling"]
    modes, include_prompt = _read_pooling(poolings[0]) if poolings else ((), True)
    known = {"Transformer", "Pooling", "Dense", "Normalize", *_WITHOUT_EFFECT}
    others = [kind for kind, _ in listed if kind not in known and not kind.endswith("Transformer")]
    others += ["a second Pooling"] if len(poolings) > 1 else []
    prompts, default = _read_prompts(root)
    return SentenceModules(
        modes,
        include_prompt,
        tuple(_read_dense(path) for kind, path in listed if kind == "Dense"),
        any(kind == "Normalize" for kind, _ in listed),
        tuple(others),
        prompts,
        default,
        _lowercases(folder),
    )


def _listed(root: Path) -> list[tuple[str, Path]]:
    """(the last part of the type, its folder) of every module."""
    path = root / MODULES
    if not path.is_file():
        return []
    found = []
    for number, entry in enumerate(read_json_list(path)):
        kind, name = (entry.get("type"), entry.get("path", "")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(name, str) or _leads_out(name):
            raise CheckpointError(f"{path}: module {number}: expected a type and a folder below, got {entry!r}")
        found.append((kind.rpartition(".")[2], root / name if name else root))
    return found


def _leads_out(name: str) -> bool:
    return name.startswith(("/", "\\")) or "\\" in name or "\0" in name or ".." in name.split("/")


def _read_pooling(folder: Path) -> tuple[tuple[str, ...], bool]:
    """The modes, a flag each (to version 5) or `pooling_mode` (from 6), the mean where none is on."""
    settings = read_json(folder / "config.json")
    mode = settings.get("pooling_mode")
    if mode is None:
        modes = tuple(ours for key, ours in _OLD_MODES.items() if settings.get(key) is True) or ("mean",)
    else:
        modes = tuple(mode) if isinstance(mode, list) else (mode,)
    if not modes or not all(isinstance(each, str) for each in modes):
        raise CheckpointError(f"{folder.name}/config.json: expected pooling_mode to be a name, got {mode!r}")
    return modes, settings.get("include_prompt") is not False


def _read_dense(folder: Path) -> Dense:
    settings = read_json(folder / "config.json")
    inner, outer = (_size(settings, key, folder) for key in ("in_features", "out_features"))
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = "Identity" if activation is None else str(activation).rpartition(".")[2]
    return Dense(folder, inner, outer, settings.get("bias") is not False, name, settings.get("use_residual") is True)


def _size(settings: Mapping[str, Any], key: str, folder: Path) -> int:
    value = settings.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{folder.name}/config.json: expected {key} to be a positive number, got {value!r}")
    return value


def _read_prompts(root: Path) -> tuple[dict[str, str], str | None]:
    path = root / _SETTINGS
    settings = read_json(path) if path.is_file() else {}
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or any(not isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{_SETTINGS}: expected prompts to be an object of texts, got {prompts!r}"[:300])
    default = settings.get("default_prompt_name")
    return {name: text for name, text in prompts.items() if text}, default if isinstance(default, str) else None


def _lowercases(folder: Path) -> bool:
    paths = [folder / name for name in _TRANSFORMER_SETTINGS]
    settings: dict[str, Any] = next((read_json(path) for path in paths if path.is_file()), {})
    return settings.get("do_lower_case") is True
