"""Model classes of transformers without weights: which settings they have, what their tensors are called and how large.

It asks the installed transformers; torch is imported when it is asked.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgepack.errors import DependencyError, UnsupportedModelError
from edgepack.model import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What classes of settings and models raise over values that they cannot take.
_REFUSALS = (KeyError, ValueError, TypeError, AttributeError, RuntimeError, ZeroDivisionError, IndexError)


@dataclass(frozen=True)
class Described:
    """A model as it would be published.

    Attributes:
        config: of config.json.
        specs: every tensor, as the checkpoint calls it; `f32`.
    """

    config: dict[str, Any]
    specs: Mapping[str, TensorSpec]


@dataclass(frozen=True)
class ModelClass:
    """A class by its name in `architectures`.

    Raises:
        DependencyError: torch or transformers is not installed.
        UnsupportedModelError: the installed transformers has no such class.
    """

    name: str

    @cached_property
    def _class(self) -> Any:
        try:
            import torch  # noqa: F401 -- transformers' classes are only stand-ins without it
            import transformers
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"a GGUF as a checkpoint: '{error.name}' is not installed, use pip install 'edgepack[compress]'"
            ) from None
        found = getattr(transformers, self.name, None)
        if getattr(found, "config_class", None) is None:
            raise UnsupportedModelError(f"{self.name}: the installed transformers has no such model")
        return found

    @cached_property
    def known(self) -> frozenset[str]:
        """Every setting that the class has."""
        settings = self._class.config_class
        own = {*getattr(settings, "__dataclass_fields__", ()), *getattr(settings, "attribute_map", {})}
        with _silence():
            return frozenset(own | set(settings().to_dict()))

    def describe(self, settings: Mapping[str, Any]) -> Described:
        """The model with these settings, and for all others what the class takes.

        Raises:
            UnsupportedModelError: the class refuses them.
        """
        import torch
        from huggingface_hub.errors import StrictDataclassError
        from transformers.core_model_loading import revert_weight_conversion

        try:
            with _silence(), torch.device("meta"):
                config = self._class.config_class(**settings)
                model = self._class(config)
                tied = set(getattr(model, "all_tied_weights_keys", None) or ())
                ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
                state = {key: tensor for key, tensor in model.state_dict().items() if key not in tied | ignored}
                published = revert_weight_conversion(model, state)
        except (*_REFUSALS, StrictDataclassError) as error:
            told = " ".join(str(error).split()) or type(error).__name__
            raise UnsupportedModelError(f"{self.name}: transformers cannot make it: {told[:200]}") from error
        found = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [self.name]}
        specs = {name: TensorSpec(name, tuple(tensor.shape), "f32") for name, tensor in published.items()}
        return Described(found, specs)


@contextmanager
def _silence() -> Iterator[None]:
    """Without what transformers logs of settings while the block lasts."""
    import warnings

    import transformers

    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
