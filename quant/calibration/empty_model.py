"""A model of transformers without its weights: its modules, and where its blocks are.

Loading weights and running blocks is left to `blocks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from edgepack.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping


def module_of(root: nn.Module, path: str) -> nn.Module:
    """The module that owns the parameter, buffer or child at dotted `path`."""
    parent = path.rpartition(".")[0]
    return root.get_submodule(parent) if parent else root


def empty_model(config: Mapping[str, Any]) -> nn.Module:
    """The model with parameters that take no memory and buffers (rotary tables) that are real."""
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config.get("model_type")
    try:
        settings = AutoConfig.for_model(**{key: _decoded(value) for key, value in config.items()})
        model_class = AutoModelForCausalLM._model_mapping[type(settings)]  # noqa: SLF001
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(settings, attn_implementation=_attention(config, model_class))
    except (KeyError, ValueError, TypeError, StrictDataclassError) as error:
        raise UnsupportedModelError(f"model type '{kind}': transformers cannot run it: {error}") from error
    model.eval()
    return model.requires_grad_(False)


def _decoded(value: Any) -> Any:
    """A value of config.json with infinities as transformers writes them: `{"__float__": "Infinity"}`."""
    if isinstance(value, dict):
        if set(value) == {"__float__"} and isinstance(value["__float__"], str):
            return float(value["__float__"])
        return {key: _decoded(each) for key, each in value.items()}
    return [_decoded(each) for each in value] if isinstance(value, list) else value


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
