"""What `/set` changes: how the next answer's tokens are chosen. Names are those of the options, and Ollama's."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepack.edge.chat.conversation import Conversation


@dataclass(frozen=True)
class Setting:
    """A number of the sampling options.

    Attributes:
        kind: `int` or `float`.
        least: the smallest value.
        most: the largest.
    """

    kind: Callable[[str], float]
    least: float
    most: float = math.inf

    def parse(self, name: str, text: str) -> float:
        """The value in `text`; raises UsageError where it is none."""
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most or math.isinf(value):
            most = "" if math.isinf(self.most) else f" to {self.most:g}"
            raise UsageError(f"{name}: expected a number from {self.least:g}{most}, got {text!r}")
        return value


_SAMPLING = {
    "temperature": Setting(float, 0),
    "top_k": Setting(int, 0, 2**31 - 1),
    "top_p": Setting(float, 0, 1),
    "min_p": Setting(float, 0, 1),
    "typical_p": Setting(float, 0, 1),
    "repeat_penalty": Setting(float, 0.01),
    "repeat_last_n": Setting(int, 0, 2**31 - 1),
    "frequency_penalty": Setting(float, -100, 100),
    "presence_penalty": Setting(float, -100, 100),
    "seed": Setting(int, -1, 2**32 - 1),
}
_LENGTH = Setting(int, -1, 2**31 - 1)
_OTHER_NAMES = {"num_predict": "max_tokens", "temp": "temperature", "typical": "typical_p"}
SETTINGS = (*_SAMPLING, "max_tokens")


def values(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """Names and values as they are."""
    for name in _SAMPLING:
        yield name, f"{getattr(conversation.sampling, name):g}"
    yield "max_tokens", str(conversation.max_tokens)


def change(conversation: Conversation, name: str, text: str) -> str:
    """Set one; gives back its name as it is spelled here.

    Raises:
        UsageError: no such setting, or no such value.
    """
    name = name.replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    if name == "max_tokens":
        conversation.max_tokens = int(_LENGTH.parse(name, text))
        return name
    if name not in _SAMPLING:
        raise UsageError(f"/set {name}: expected one of {', '.join(SETTINGS)}")
    value: Any = _SAMPLING[name].parse(name, text)
    conversation.sampling = replace(conversation.sampling, **{name: value})
    return name
