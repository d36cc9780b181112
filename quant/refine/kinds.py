"""The types between which allocation chooses: what llama.cpp runs fast on CPUs and GPUs, and what its products round.

Which tensor gets which is `allocation`'s. Sources: the table `type_traits_cpu` in llama.cpp's
ggml/src/ggml-cpu/ggml-cpu.c (vec_dot_type), and ggml/src/ggml-cuda/mmvq.cu, whose inputs are always in blocks of 32.
"""

from __future__ import annotations

from edgepack.gguf.types import GGMLType as T

# From small to large. The codebooks of IQ2 and IQ3 are left out: they are slow on CPUs, and have no grid on which
# errors could be fed back.
CANDIDATES = (
    T.Q2_K, T.Q3_K, T.IQ4_XS, T.Q4_K, T.Q4_0, T.IQ4_NL, T.Q4_1, T.Q5_K, T.Q5_0, T.Q5_1, T.Q6_K, T.Q8_0, T.F16,
)  # fmt: skip
_COARSE = frozenset((T.Q2_K, T.Q3_K, T.IQ4_XS, T.Q4_K, T.Q5_K, T.Q6_K))
_FLOATS = frozenset((T.F32, T.F16, T.BF16))
FINE_BLOCK, COARSE_BLOCK = 32, 256  # of Q8_0 and Q8_1, of Q8_K


def candidates(columns: int) -> tuple[T, ...]:
    """The types that rows of `columns` weights may have, from small to large."""
    return tuple(kind for kind in CANDIDATES if columns % kind.block_size == 0)


def input_block(kind: T, *, on_gpu: bool = False) -> int | None:
    """Columns that share one step when llama.cpp rounds what a matrix of this type reads to 8 bits; None: it does not.

    Floats read their inputs as float16 or wider, whose rounding is a thousandth of that and counts as none.
    """
    if kind in _FLOATS:
        return None
    return COARSE_BLOCK if kind in _COARSE and not on_gpu else FINE_BLOCK
