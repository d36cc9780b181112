"""What `adapter_config.json` of a LoRA says: every setting that changes the function is honoured or refused by name.

Settings: `LoraConfig` and `PeftConfig` of peft 0.21. Reading the tensors is left to `export.lora.adapter`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.errors import AdapterError
from edgepack.export.json_file import read_json
from edgepack.expressions import ExpressionError, expression

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# A setting that changes what the adapter computes, and why it cannot be merged.
_REFUSED = {
    "alora_invocation_tokens": "it acts only behind certain tokens",
    "arrow_config": "it chooses among adapters for every token",
    "kasa_config": "it cuts singular values of the base",
    "layer_replication": "it stacks layers of the base anew: save the stacked model first",
    "lora_bias": "its factors have a bias",
    "megatron_config": "its layers are Megatron's",
    "monteclora_config": "it draws samples",
    "target_parameters": "it changes stacked parameters: merge with peft first",
    "use_bdlora": "its factors are block-diagonal",
    "use_qalora": "it pools inputs in groups",
    "velora_config": "it stores compressed activations in its layers",
}
# Initialisations after which training began from the base as it is.
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_HONOURED = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "trainable_token_indices", "use_dora", "use_rslora",
})  # fmt: skip
_DEFAULT_ALPHA = 8.0


@dataclass(frozen=True)
class AdapterSettings:
    """One adapter's settings: every message names its folder.

    Attributes:
        folder: of the adapter.
        values: parsed `adapter_config.json`.
    """

    folder: Path
    values: Mapping[str, Any]

    def error(self, what: str) -> AdapterError:
        """A refusal."""
        return AdapterError(f"{self.folder}: {what}")

    def check(self) -> None:
        """Raise AdapterError unless this is a LoRA whose every setting can be honoured."""
        if "peft_type" not in self.values and "lora_parameters" in self.values:
            raise self.error("expected an adapter of peft, got one of MLX (lora_parameters)")
        kind = self.values.get("peft_type")
        if kind != "LORA":
            raise self.error(f"expected peft_type LORA, got {kind!r}")
        for key, why in _REFUSED.items():
            if self.values.get(key):
                raise self.error(f"{key} cannot be merged: {why}")
        init = self.values.get("init_lora_weights", True)
        if init not in _PLAIN_INIT:
            raise self.error(
                f"init_lora_weights {init!r} cannot be merged: training began from a base that it had changed;"
                " save the adapter converted to a plain LoRA (peft: path_initial_model_for_weight_conversion)"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each setting that peft does not have, and passes over too."""
        unknown = sorted(key for key in self.values if key not in _HONOURED and key not in _REFUSED)
        return tuple(f"adapter: {key} is no setting of peft: passed over" for key in unknown if self.values[key])

    @property
    def alpha(self) -> float:
        """`lora_alpha`."""
        return self._number(self.values, "lora_alpha", default=_DEFAULT_ALPHA)

    @property
    def transposed(self) -> bool:
        """Whether weights are stored as [in, out]."""
        return self.values.get("fan_in_fan_out") is True

    def scale(self, module: str, rank: int) -> float:
        """Alpha over the rank (or its root), where the first matching pattern sets a module's own alpha."""
        patterns = self.values.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise self.error(f"expected alpha_pattern to be an object, got {type(patterns).__name__}")
        own = next((pattern for pattern in patterns if self._matches(pattern, module)), None)
        alpha = self.alpha if own is None else self._number(patterns, own)
        return alpha / (math.sqrt(rank) if self.values.get("use_rslora") is True else rank)

    def saves(self, module: str) -> bool:
        """Whether a module was trained whole, as a copy of its own (`modules_to_save`)."""
        names = self.values.get("modules_to_save") or []
        return isinstance(names, list) and any(module == name or module.endswith(f".{name}") for name in names)

    def token_indices(self, module: str) -> list[int]:
        """`trainable_token_indices` of a module: one list for the embedding, or a list for each module by name."""
        given = self.values.get("trainable_token_indices")
        if isinstance(given, dict):
            given = next((given[key] for key in given if module == key or module.endswith(f".{key}")), None)
        if not isinstance(given, list) or any(type(index) is not int or index < 0 for index in given):
            raise self.error(f"expected trainable_token_indices of '{module}' to be a list of ids, got {given!r}")
        return given

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            return expression(rf"(.*\.)?({pattern})$").match(module)
        except ExpressionError as error:
            raise self.error(f"alpha_pattern {pattern!r:.200}: {error}") from None

    def _number(self, config: Mapping[str, Any], key: str, default: float | None = None) -> float:
        value = config.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.error(f"expected {key} to be a number, got {value!r}")
        return float(value)


def read_settings(folder: Path) -> AdapterSettings:
    """Read and check the settings of the adapter in `folder`.

    Raises:
        AdapterError: not a LoRA, or of a kind that cannot be merged.
        CheckpointError: no `adapter_config.json`, or one that is no object.
    """
    if folder.is_file():
        raise AdapterError(f"{folder}: expected a folder with adapter_config.json, got a file")
    settings = AdapterSettings(folder, read_json(folder / "adapter_config.json"))
    settings.check()
    return settings
