"""How an option of an export is declared: spelling, help, the kind of value, the kinds of target that take it.

Which options there are is `pipeline.export_options`' table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
GGUF, CODED, WIRE = "gguf", "coded", "wire"
EVERY = (GGUF, CODED, WIRE)
REFINED = "gguf-refined"  # what a file is called whose types were allocated within bytes, not within a target's


@dataclass(frozen=True)
class Option:
    """How an option is spelled and who takes it.

    Attributes:
        spelling: such as `--tensor-type`; several are separated by spaces, the first is shown.
        help: one line.
        kinds: the kinds of target that take it.
        value: `path`, `size`, `text`, `flag`, `count` (at least 1), `number`, `texts` for a repeatable one,
            or `switch` for `--x/--no-x`, which is None where neither is given.
        metavar: what stands for the value in the help.
        choices: all that is allowed, for `text`.
        beside_passes: whether it means something together with a recipe.
        hidden: further spellings that are understood and not shown.
        shows_default: whether the help names the default.
    """

    spelling: str
    help: str
    kinds: tuple[str, ...] = EVERY
    value: str = "path"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    beside_passes: bool = True
    hidden: tuple[str, ...] = ()
    shows_default: bool = False

    @property
    def is_switch(self) -> bool:
        """Whether a second spelling says no, and neither is a third answer: `--refine/--no-refine`."""
        return self.value == "switch"

    @property
    def name(self) -> str:
        """The spelling that messages use: the longest of the shown ones."""
        return max(self.spelling.partition("/")[0].split(), key=len)


def option(default: T, declared: Option) -> T:
    """A field of `ExportOptions` that is an option with this default."""
    return field(default=default, metadata={"option": declared})
