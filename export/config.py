"""`config.json` read with checks, in the spellings of transformers 4 and 5 alike.

It knows which key says what, not what a family does with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS in llama-hparams.h
_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_ROPE_KEYS = {
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
    "original_max_position_embeddings": ("original_max_position_embeddings",),
}


@dataclass(frozen=True)
class ModelConfig:
    """A model's configuration.

    Attributes:
        values: the parsed JSON object.
        label: names the file in messages.
        folder: where files beside it lie, None where there are none.
    """

    values: Mapping[str, Any]
    label: str = "config.json"
    folder: Path | None = None

    def with_defaults(self, defaults: Mapping[str, Any]) -> ModelConfig:
        """The same with values for absent keys; a key that is present stays, even if it is null."""
        return replace(self, values={**defaults, **self.values})

    def changed(self, **settings: Any) -> ModelConfig:
        """The same with other values for `settings`."""
        return replace(self, values={**self.values, **settings})

    def respelt(self, spellings: Mapping[str, str]) -> ModelConfig:
        """The same with settings under the names that the keys of `spellings` are, where their values alone stand."""
        found = {ours: self.values[theirs] for ours, theirs in spellings.items() if theirs in self.values}
        return replace(self, values={**found, **self.values})

    def of_text(self) -> ModelConfig:
        """The settings under `text_config` before those beside it.

        Whether the head is the embedding is the whole model's to say: `tie_word_embeddings` beside `text_config`
        comes first, as in transformers, whose head belongs to the whole.

        Raises:
            CheckpointError: it is no object.
        """
        text, tie = self._object("text_config", self.values.get("text_config")), "tie_word_embeddings"
        whole = {tie: self.values[tie]} if self.values.get(tie) is not None else {}
        return replace(self, values={**self.values, **text, **whole})

    def _find(self, keys: tuple[str, ...]) -> tuple[str, Any]:
        for key in keys:
            if self.values.get(key) is not None:
                return key, self.values[key]
        return keys[0], None

    def count(self, *keys: str, default: int | None = None) -> int:
        """A positive integer under the first of `keys` that is present.

        Raises:
            CheckpointError: absent without a default, or not a positive integer below 2³¹.
        """
        key, value = self._find(keys)
        if value is None:
            if default is not None:
                return default
            raise CheckpointError(f"{self.label}: expected key '{keys[0]}', found none")
        if type(value) is not int or not 0 < value < 2**31:
            raise CheckpointError(f"{self.label}: {key}: expected a positive integer, got {value!r}")
        return value

    def bounded(self, what: str, limit: int, *keys: str) -> int:
        """As `count`, not more than llama.cpp's `limit` of `what`; raises UnsupportedModelError beyond."""
        number = self.count(*keys)
        if number > limit:
            raise UnsupportedModelError(f"{self.label}: {number} {what}: llama.cpp holds at most {limit}")
        return number

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite number under the first of `keys` that is present; raises as `count`."""
        key, value = self._find(keys)
        if value is None:
            if default is not None:
                return default
            raise CheckpointError(f"{self.label}: expected key '{keys[0]}', found none")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e38:
            raise CheckpointError(f"{self.label}: {key}: expected a number, got {value!r}")
        return float(value)

    def flag(self, *keys: str, default: bool = False) -> bool:
        """A boolean under the first of `keys` that is present."""
        key, value = self._find(keys)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.label}: {key}: expected true or false, got {value!r}")
        return value

    def get(self, *keys: str) -> Any:
        """The raw value under the first of `keys` that is present and not null, or None."""
        return self._find(keys)[1]

    @property
    def architecture(self) -> str:
        """The model class, such as `LlamaForCausalLM`.

        Raises:
            CheckpointError: `architectures` is absent or not a list of names.
        """
        names = self.values.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise CheckpointError(f"{self.label}: expected key 'architectures' with a list of names, got {names!r}")
        return names[0]

    @property
    def model_type(self) -> str:
        """`model_type` of the part that reads text, empty where the configuration has none."""
        text = self._object("text_config", self.values.get("text_config"))
        return str(text.get("model_type") or self.values.get("model_type") or "")

    @property
    def rope(self) -> Mapping[str, Any]:
        """Rope parameters: transformers 5's `rope_parameters`, or 4's `rope_scaling` joined with `rope_theta`.

        The type stands under `rope_type` (older files say `type`), the base under `rope_theta`.
        """
        found: dict[str, Any] = {}
        for key in ("rope_scaling", "rope_parameters"):
            found |= self._object(key, self.values.get(key))
        if "full_attention" in found:  # one set for each kind of layer; sliding layers: `sliding_rope`
            found = dict(self._object("rope_parameters.full_attention", found["full_attention"]))
        if "rope_type" not in found and "type" in found:
            found["rope_type"] = found["type"]
        for key, spellings in _ROPE_KEYS.items():
            value = self.get(*spellings)
            if found.get(key) is None and value is not None:
                found[key] = value
        return found

    @property
    def sliding_rope(self) -> Mapping[str, Any]:
        """Rope parameters of sliding layers, as far as they are their own."""
        nested = self._object("rope_parameters", self.values.get("rope_parameters")).get("sliding_attention")
        found = dict(self._object("rope_parameters.sliding_attention", nested))
        if "rope_theta" not in found and self.get("rope_local_base_freq") is not None:
            found["rope_theta"] = self.number("rope_local_base_freq")
        return found

    def _object(self, key: str, value: Any) -> Mapping[str, Any]:
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{self.label}: {key}: expected an object, got {value!r}")
        return value or {}

    @property
    def n_layers(self) -> int:
        """Transformer blocks."""
        return self.bounded("layers", _MAX_LAYERS, "num_hidden_layers", "n_layer", "num_layers")

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return self.count("num_attention_heads", "n_head")

    @property
    def n_kv_heads(self) -> int:
        """Key-value heads; as many as query heads where the key is absent."""
        heads = self.count("num_key_value_heads", default=self.n_heads)
        if self.n_heads % heads:
            raise CheckpointError(
                f"{self.label}: {self.n_heads} query heads are not a multiple of {heads} key-value heads"
            )
        return heads

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.count("hidden_size", "n_embd")

    @property
    def head_dim(self) -> int:
        """Width of a head, even; hidden / heads where the key is absent."""
        if self.get("head_dim") is None and self.hidden % self.n_heads:
            raise CheckpointError(f"{self.label}: hidden_size {self.hidden} is not a multiple of {self.n_heads} heads")
        width = self.count("head_dim", default=self.hidden // self.n_heads)
        if width % 2:
            raise UnsupportedModelError(f"{self.label}: expected heads of even width, got {width}")
        return width

    @property
    def rotary_dim(self) -> int:
        """How many of a head's elements rope turns, from its beginning; even."""
        part = self.rope.get("partial_rotary_factor", 1.0)
        if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1:
            raise CheckpointError(f"{self.label}: partial_rotary_factor: expected a number up to 1, got {part!r}")
        turned = int(self.head_dim * part)
        if turned % 2 or not turned:
            raise UnsupportedModelError(f"{self.label}: expected rope over an even part of a head, got {turned}")
        return turned

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.flag("tie_embedding", "tie_word_embeddings", default=False)  # the first is LFM 2's

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.count("vocab_size")

    @property
    def n_experts(self) -> int:
        """Routed experts a layer; 0 when the model is dense."""
        keys = ("num_local_experts", "num_experts", "n_routed_experts")
        return self.bounded("experts", _MAX_EXPERTS, *keys) if self.get(*keys) else 0
