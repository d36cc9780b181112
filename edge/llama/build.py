"""What an installed llama.cpp was built with, and what of it must not be run; which engine runs is `engines`'s."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.edge.llama.engine import EngineName


@cache
def system_info(name: EngineName) -> str:
    """Instruction sets and features of an engine's build, as llama.cpp spells them (`AVX2 = 1`)."""
    if name == "xllamacpp":
        import xllamacpp

        return str(xllamacpp.get_system_info()).strip(" |")
    from llama_cpp import llama_cpp as c

    return str(c.llama_print_system_info().decode("utf-8", "replace")).strip(" |")


def features(name: EngineName) -> frozenset[str]:
    """Names of what an engine's build has, in upper case, such as AVX2 and REPACK."""
    return frozenset(re.findall(r"(\w+) = 1", system_info(name)))


def has_amx(name: EngineName) -> bool:
    """Whether an engine's build has kernels for AMX, which an engine must not be let run.

    GCC before 12.4, 13.3 and 14 drops the tiles' configuration that they store (its bug 114098; llama.cpp's pull
    request 26954): the first prompt of more than a few tokens then ends the process by an illegal instruction. A build
    does not tell what compiled it. Without extra types of buffers, repacked ones with them, the kernels are not taken.
    """
    return "AMX_INT8" in features(name)
