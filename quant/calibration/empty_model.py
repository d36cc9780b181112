"""A model of transformers without its weights: its modules, and where its blocks are.

Loading weights and running blocks is left to `blocks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from edgepack.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

# How the names of classes end whose models give no logits of the next token, and of those that do all the same.
_EMBEDDERS = ("Model", "ForMaskedLM", "ForSequenceClassification")
_GENERATORS = ("LMHeadModel",)


def module_of(root: nn.Module, path: str) -> nn.Module:
    """The module that owns the parameter, buffer or child at dotted `path`."""
    parent = path.rpartition(".")[0]
    return root.get_submodule(parent) if parent else root


def empty_model(config: Mapping[str, Any]) -> nn.Module:
    """The model with parameters that take no memory and buffers (rotary tables) that are real."""
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = config.get("model_type")
    if isinstance(kind, str) and kind not in CONFIG_MAPPING:
        raise UnsupportedModelError(f"model type '{kind}': the installed transformers has no such model to run")
    try:
        settings = AutoConfig.for_model(**{key: _decoded(value) for key, value in config.items()})
        auto, model_class = language_model_class(settings)
        with init_empty_weights(include_buffers=False):
            model = auto.from_config(settings, attn_implementation=_attention(config, model_class))
    except (KeyError, ValueError, TypeError, StrictDataclassError) as error:
        raise UnsupportedModelError(f"model type '{kind}': transformers cannot run it: {error}") from error
    model.eval()
    return model.requires_grad_(False)


def language_model_class(settings: Any) -> tuple[Any, Any]:
    """What transformers makes a model with that gives logits of the next token, and the class of the model.

    Of a model that sees as well the whole is made: given text alone, it does what its text part does.

    Args:
        settings: a configuration of transformers.

    Raises:
        UnsupportedModelError: its models give none.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    published = str((settings.architectures or [""])[0])
    if published.endswith(_EMBEDDERS) and not published.endswith(_GENERATORS):
        raise UnsupportedModelError(f"{published} gives embeddings or scores: it does not say what comes next")
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(settings) in auto._model_mapping:  # noqa: SLF001
            return auto, auto._model_mapping[type(settings)]  # noqa: SLF001
    raise UnsupportedModelError(f"model type '{settings.model_type}': its models do not say what comes next")


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
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    count = model.config.get_text_config().num_hidden_layers
    inner = {id(module) for module in decoder.modules()}  # blocks of eyes may be as many
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and id(module) in inner:
            return path, module
    raise UnsupportedModelError(f"model type '{config.get('model_type')}': found no list of transformer blocks")
