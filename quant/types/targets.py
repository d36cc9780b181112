"""The quantisation targets: names as people spell them, llama.cpp's file type number, the default tensor type.

Which tensor departs from the default is left to `edgepack.quant.types.choice`.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from edgepack.errors import UsageError
from edgepack.gguf.types import GGMLType


@dataclass(frozen=True)
class Target:
    """One file type of llama.cpp.

    Attributes:
        label: llama.cpp's spelling, such as `Q5_K_M`; also the encoding part of a file name.
        file_type: `enum llama_ftype` in llama.h, written to `general.file_type`.
        default: what most matrices become.
        bits_per_weight: nominal, of the default type; orders the ladder of targets.
    """

    label: str
    file_type: int
    default: GGMLType

    @property
    def name(self) -> str:
        """Edgepack's spelling, such as `gguf-q5km`."""
        return f"gguf-{_SPELLINGS.get(self.label, _key(self.label))}"

    @property
    def bits_per_weight(self) -> float:
        """Nominal bits a weight of the default type."""
        return 8 * self.default.block_bytes / self.default.block_size


def _key(text: str) -> str:
    """Case and underscores do not matter, except between two digits."""
    return text.lower().replace("_", "")


_T = GGMLType
TARGETS: tuple[Target, ...] = (
    Target("F32", 0, _T.F32),
    Target("F16", 1, _T.F16),
    Target("BF16", 32, _T.BF16),
    Target("Q8_0", 7, _T.Q8_0),
    Target("Q6_K", 18, _T.Q6_K),
    Target("Q5_K_M", 17, _T.Q5_K),
    Target("Q5_K_S", 16, _T.Q5_K),
    Target("Q4_K_M", 15, _T.Q4_K),
    Target("Q4_K_S", 14, _T.Q4_K),
    Target("Q3_K_L", 13, _T.Q3_K),
    Target("Q3_K_M", 12, _T.Q3_K),
    Target("Q3_K_S", 11, _T.Q3_K),
    Target("Q2_K", 10, _T.Q2_K),
    Target("Q2_K_S", 21, _T.Q2_K),
    Target("Q5_1", 9, _T.Q5_1),
    Target("Q5_0", 8, _T.Q5_0),
    Target("Q4_1", 3, _T.Q4_1),
    Target("Q4_0", 2, _T.Q4_0),
    Target("IQ4_NL", 25, _T.IQ4_NL),
    Target("IQ4_XS", 30, _T.IQ4_XS),
    Target("IQ3_M", 27, _T.IQ3_S),
    Target("IQ3_S", 26, _T.IQ3_S),
    Target("IQ3_XS", 22, _T.IQ3_S),
    Target("IQ3_XXS", 23, _T.IQ3_XXS),
    Target("IQ2_M", 29, _T.IQ2_S),
    Target("IQ2_S", 28, _T.IQ2_XS),
    Target("IQ2_XS", 20, _T.IQ2_XS),
    Target("IQ2_XXS", 19, _T.IQ2_XXS),
    Target("IQ1_M", 31, _T.IQ1_M),
    Target("IQ1_S", 24, _T.IQ1_S),
    Target("TQ2_0", 37, _T.TQ2_0),
    Target("TQ1_0", 36, _T.TQ1_0),
    Target("MXFP4_MOE", 38, _T.MXFP4),
    Target("Q2_0", 41, _T.Q2_0),
    Target("Q1_0", 40, _T.Q1_0),
)
# The spellings of the command line that are not simply the label without underscores.
_SPELLINGS = {
    "Q8_0": "q8", "Q5_1": "q5_1", "Q5_0": "q5_0", "Q4_1": "q4_1", "Q4_0": "q4_0",
    "TQ1_0": "tq1", "TQ2_0": "tq2", "MXFP4_MOE": "mxfp4", "Q2_0": "q2_0", "Q1_0": "q1_0",
}  # fmt: skip
_BY_KEY = {_key(target.label): target for target in TARGETS}
_BY_KEY |= {_key(spelling): _BY_KEY[_key(label)] for label, spelling in _SPELLINGS.items()}
_BY_KEY |= {short: _BY_KEY[f"{short}m"] for short in ("q3k", "q4k", "q5k")}  # as llama-quantize has it


def find_target(text: str) -> Target:
    """The target called `gguf-q5km`, `q5_k_m` or `Q5_K_M`.

    Raises:
        UsageError: unknown; the text names the nearest one.
    """
    key = _key(text.lower().removeprefix("gguf-"))
    if key in _BY_KEY:
        return _BY_KEY[key]
    near = get_close_matches(key, _BY_KEY, n=1, cutoff=0.0)
    names = " ".join(target.name for target in TARGETS)
    raise UsageError(f"unknown target '{text}': did you mean '{_BY_KEY[near[0]].name}'? Known: {names}")


def find_type(text: str) -> GGMLType:
    """The tensor type called `q6_K`, `q6_k` or `q6k`, in any case.

    Raises:
        UsageError: unknown; the text names the nearest one.
    """
    by_key = {_key(kind.name): kind for kind in GGMLType}
    key = _key(text)
    if key in by_key:
        return by_key[key]
    near = get_close_matches(key, by_key, n=1, cutoff=0.0)
    raise UsageError(f"unknown tensor type '{text}': did you mean '{by_key[near[0]].name.lower()}'?")
