"""What a key of a recipe may hold: its type, its range, its default.

Which keys there are is each pass's declaration's business; reading them from a file, `quant.passes.recipe`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.errors import RecipeError, UsageError
from edgepack.quantities import parse_size

Settings = Mapping[str, Any]
"""Every key of a pass with its checked value; None where an absent key has no default."""


@dataclass(frozen=True)
class Setting:
    """What a key of a recipe may hold.

    Attributes:
        kind: `text`, `whole`, `number`, `flag` or `size`.
        choices: for `text`: all that is allowed; empty for any.
        low: for numbers: the least, included.
        high: for numbers: the greatest, included unless `open_end`.
        open_end: whether `high` itself is refused.
        default: what stands for an absent key; None for no value.
    """

    kind: str
    choices: tuple[str, ...] = ()
    low: float = float("-inf")
    high: float = float("inf")
    open_end: bool = False
    default: Any = None

    def parse(self, value: Any, path: str) -> Any:
        """The checked value; raises RecipeError with `path`."""
        if self.kind == "text":
            return self._text(value, path)
        if self.kind == "flag":
            return self._typed(value, bool, "true or false", path)
        if self.kind == "size":
            try:
                return parse_size(value) if isinstance(value, str) else int(self._in_range(value, path))
            except UsageError as error:
                raise RecipeError(f"{path}: {error}") from None
        return self._in_range(value, path)

    def _typed(self, value: Any, kind: Any, what: str, path: str) -> Any:
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise RecipeError(f"{path}: expected {what}, got {value!r}")
        return value

    def _text(self, value: Any, path: str) -> str:
        text: str = self._typed(value, str, "text", path)
        if self.choices and text not in self.choices:
            raise RecipeError(f"{path}: expected {' or '.join(map(repr, self.choices))}, got {value!r}")
        return text

    def _in_range(self, value: Any, path: str) -> Any:
        whole = self.kind in ("whole", "size")
        self._typed(value, int if whole else (int, float), "a whole number" if whole else "a number", path)
        inside = self.low <= value <= self.high and not (self.open_end and value == self.high)
        if not inside:
            end = "not included" if self.open_end else "included"
            raise RecipeError(f"{path}: expected {self.low:g} to {self.high:g} ({end}), got {value!r}")
        return value
