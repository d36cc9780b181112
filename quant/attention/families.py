"""Where a transformers model keeps its attention: one family an entry, as data.

Any other class is refused here in a line; what is done with keys and values is left to `projector` and `cache`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class AttentionFamily:
    """Classes whose attention lies in the same places.

    Attributes:
        classes: transformers' classes of whole models.
        layers: path of the list of layers in the model.
        attention: path of the attention inside a layer.
        output: module inside the attention that mixes the heads' values.
        transposed: whether the weights of `output` lie [in, out] (GPT-2's Conv1D) and not [out, in].
        rotary: path of the module that gives cosines and sines; None where positions are learnt.
    """

    classes: tuple[str, ...]
    layers: str = "model.layers"
    attention: str = "self_attn"
    output: str = "o_proj"
    transposed: bool = False
    rotary: str | None = "model.rotary_emb"


LLAMA = AttentionFamily((
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM",
    "GraniteForCausalLM", "Phi3ForCausalLM", "Olmo2ForCausalLM",
))  # fmt: skip
STARCODER2 = AttentionFamily(("Starcoder2ForCausalLM",))
GPT2 = AttentionFamily(("GPT2LMHeadModel",), "transformer.h", "attn", output="c_proj", transposed=True, rotary=None)
FAMILIES = (LLAMA, STARCODER2, GPT2)
_STEADY_ROPE = ("default", "linear", "llama3", "yarn")  # angles of a position do not depend on the text's length


@dataclass(frozen=True)
class AttentionLayout:
    """The attention of one model.

    Attributes:
        attentions: the attention modules, one a layer.
        outputs: weights of what mixes the values of each layer, [out, heads · head], not copied.
        rotary: gives cosines and sines; None where positions are learnt.
        heads: query heads.
        kv_heads: heads of keys and values.
        head: elements of a head.
        turned: elements of a head that rope turns, the first of it; 0 without rope.
    """

    attentions: tuple[nn.Module, ...]
    outputs: tuple[Any, ...]
    rotary: nn.Module | None
    heads: int
    kv_heads: int
    head: int
    turned: int

    @property
    def width(self) -> int:
        """Elements of a token's keys in a layer."""
        return self.kv_heads * self.head


def layout_of(model: Any) -> AttentionLayout:
    """Where the attention of `model` lies.

    Raises:
        UnsupportedModelError: it has no attention, its class is not known here, or its rope changes with the length.
    """
    name, config = type(model).__name__, model.config
    if not getattr(config, "num_attention_heads", None):
        raise UnsupportedModelError(
            f"{name}: expected a model with attention, got {config.model_type}: it keeps no keys or values to project"
        )
    family = next((each for each in FAMILIES if name in each.classes), None)
    if family is None:
        known = ", ".join(sorted(known for each in FAMILIES for known in each.classes))
        raise UnsupportedModelError(f"{name}: its attention is not known here, expected one of {known}")
    layers = _at(model, family.layers)
    attentions = tuple(_at(layer, family.attention) for layer in layers)
    rotary = _rotary(model, family, name)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return AttentionLayout(
        attentions,
        tuple(_output(attention, family) for attention in attentions),
        rotary,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head=head,
        turned=0 if rotary is None else 2 * rotary.inv_freq.numel(),
    )


def _at(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _output(attention: nn.Module, family: AttentionFamily) -> Any:
    weight = _at(attention, family.output).weight.detach()
    return weight.T if family.transposed else weight


def _rotary(model: Any, family: AttentionFamily, name: str) -> nn.Module | None:
    if family.rotary is None:
        return None
    rotary: nn.Module = _at(model, family.rotary)
    if rotary.rope_type not in _STEADY_ROPE:
        raise UnsupportedModelError(
            f"{name}: rope type '{rotary.rope_type}' turns by the length of the text, expected one of "
            + ", ".join(_STEADY_ROPE)
        )
    return rotary
