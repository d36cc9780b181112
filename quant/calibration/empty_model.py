"""A model of transformers without its weights: its modules, where its blocks are, and what the checkpoint calls them.

Loading weights and running blocks is left to `blocks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from edgepack.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.model import TensorSource


def module_of(root: nn.Module, path: str) -> nn.Module:
    """The module that owns the parameter, buffer or child at dotted `path`."""
    parent = path.rpartition(".")[0]
    return root.get_submodule(parent) if parent else root


def empty_model(config: Mapping[str, Any]) -> nn.Module:
    """The model with parameters that take no memory and buffers (rotary tables) that are real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config.get("model_type")
    try:
        settings = AutoConfig.for_model(**config)
        model_class = AutoModelForCausalLM._model_mapping[type(settings)]  # noqa: SLF001
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(settings, attn_implementation=_attention(config, model_class))
    except (KeyError, ValueError, TypeError) as error:
        raise UnsupportedModelError(f"model type '{kind}': transformers cannot run it: {error}") from error
    model.eval()
    return model.requires_grad_(False)


def _attention(config: Mapping[str, Any], model_class: Any) -> str:
    """PyTorch's fused attention, except where scores are capped, which only the plain one honours."""
    fused = getattr(model_class, "_supports_sdpa", False) and not config.get("attn_logit_softcapping")
    return "sdpa" if fused else "eager"


def block_list(model: nn.Module, config: Mapping[str, Any]) -> tuple[str, nn.ModuleList]:
    """Path and modules of the list that holds the transformer blocks."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return path, module
    raise UnsupportedModelError(f"model type '{config.get('model_type')}': found no list of transformer blocks")


def checkpoint_names(model: nn.Module, source: TensorSource) -> dict[str, str]:
    """Parameter path → checkpoint name; published checkpoints differ by the base model's prefix."""
    prefix, names, missing = f"{model.base_model_prefix}.", {}, []
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for path, _ in model.named_parameters(remove_duplicate=False):
        spellings: Sequence[str] = (path, path.removeprefix(prefix), prefix + path)
        name = next((spelling for spelling in spellings if spelling in source.specs), None)
        if name is not None:
            names[path] = name
        elif path not in tied:
            missing.append(path)
    if missing:
        raise CheckpointError(f"the checkpoint has no tensor for '{missing[0]}' ({len(missing)} missing in all)")
    return names
