"""How each kind of content is split into planes, as data: one row a ggml type, bit positions of every field.

`planes` executes these rows; a new type is a new row. Rows are frozen once released: archives name them by
id. A better split of the same type gets a new id (256 and up), the old row stays for reading.

Field positions are those of the structs in ggml-common.h of llama.cpp (MIT), element order as its
dequantize_row functions have it.
"""

from __future__ import annotations

from dataclasses import replace

from edgepack.gguf.types import GGMLType
from edgepack.packaging.coding.block import Column, Flip, Layout, Part, Plane

TAIL = 15  # plane number of the bytes behind the last whole block
_TYPE_BASE = 16  # layout id = 16 + number of the ggml type


def _bytes(name: str, offset: int, count: int, repeats: bool = True) -> Plane:
    """A field as it is."""
    return Plane(name, (Column(count, (Part(offset),)),), repeats)


def _half(name: str, offset: int) -> tuple[Plane, ...]:
    """A 16-bit float scale: mantissa bits that look random, and sign, exponent and top of the mantissa."""
    return (_bytes(f"{name} low", offset, 1), _bytes(f"{name} high", offset + 1, 1))


def _delta_pair(offset: int) -> tuple[Plane, ...]:
    """The 16-bit scales d and dmin: their low bytes are both as good as random, so they share a plane."""
    low = Plane("d and dmin low", tuple(Column(1, (Part(offset + byte),)) for byte in (0, 2)))
    return (low, _bytes("d high", offset + 1, 1), _bytes("dmin high", offset + 3, 1))


def _element(name: str, width: int) -> tuple[Plane, ...]:
    """Numbers of `width` bytes: one plane a byte."""
    return tuple(_bytes(f"{name} byte {i}", i, 1) for i in range(width))


def _bfloat16() -> tuple[Plane, ...]:
    """The eight exponent bits together, the sign with the mantissa."""
    exponent = Column(1, (Part(0, 7, 1), Part(1, 0, 7)))
    rest = Column(1, (Part(0, 0, 7), Part(1, 7, 1)))
    return (Plane("exponents", (exponent,), repeats=False), Plane("sign and mantissa", (rest,), repeats=False))


def _float32() -> tuple[Plane, ...]:
    """As bfloat16, with two more mantissa bytes (zero where the weights were bfloat16)."""
    exponent = Column(1, (Part(2, 7, 1), Part(3, 0, 7)))
    rest = Column(1, (Part(2, 0, 7), Part(3, 7, 1)))
    return (
        Plane("exponents", (exponent,), repeats=False),
        Plane("sign and mantissa", (rest,), repeats=False),
        _bytes("mantissa middle", 1, 1, repeats=False),
        _bytes("mantissa low", 0, 1, repeats=False),
    )


def _float16() -> tuple[Plane, ...]:
    return (_bytes("sign and exponent", 1, 1, repeats=False), _bytes("mantissa", 0, 1, repeats=False))


def _fifth_bits(qh: int, qs: int) -> Plane:
    """Q5_0 and Q5_1: weight j is a nibble of byte j of qs and bit j of the 32-bit qh."""
    columns = [
        Column(1, (Part(qs + j % 16, 4 * (j // 16), 4), Part(qh + j // 8, j % 8, 1)))
        for j in range(32)
    ]  # fmt: skip
    return Plane("quants", tuple(columns), repeats=False)


def _scales_k4(offset: int) -> tuple[Plane, ...]:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes (get_scale_min_k4)."""
    scales = (
        Column(4, (Part(offset, 0, 6),)),
        Column(4, (Part(offset + 8, 0, 4), Part(offset, 6, 2))),
    )
    minima = (
        Column(4, (Part(offset + 4, 0, 6),)),
        Column(4, (Part(offset + 8, 4, 4), Part(offset + 4, 6, 2))),
    )
    return (Plane("scales", scales), Plane("minima", minima))


def _q3_k() -> tuple[Plane, ...]:
    """3-bit weights, two in a symbol, so that its entropy fills the coder's whole bits better."""
    quants = [
        Column(32, (Part(32 + 32 * half, 4 * pair, 2), Part(0, 4 * half + 2 * pair, 1),
                    Part(32 + 32 * half, 4 * pair + 2, 2), Part(0, 4 * half + 2 * pair + 1, 1)))
        for half in range(2) for pair in range(2)
    ]  # fmt: skip
    scales = [
        Column(4, (Part(96 + 4 * (group % 2), 4 * (group // 2), 4), Part(104, 2 * group, 2))) for group in range(4)
    ]
    return (Plane("quants", tuple(quants), repeats=False), Plane("scales", tuple(scales)), *_half("d", 108))


def _q5_k() -> tuple[Plane, ...]:
    """5-bit weights: the highest bit as it is, the four others mirrored where it is set, two weights in a symbol.

    Weights spread evenly to either side of a block's middle, so the highest bit is as good as random and a
    mirrored weight says how far it is from the middle. Two of them in a byte are 0.3 % over the entropy of the
    5-bit weights, one whole weight a symbol 0.8 %: Huffman codes lose most on small alphabets
    (`tools/symbol_coding.py`, bundled model).
    """
    pairs = [
        Column(32, (Part(48 + 32 * p, 0, 4, Flip(16, 2 * p)), Part(48 + 32 * p, 4, 4, Flip(16, 2 * p + 1))))
        for p in range(4)
    ]
    return (
        _bytes("highest bits", 16, 32, repeats=False),
        Plane("quants", tuple(pairs), repeats=False),
        *_scales_k4(4),
        *_delta_pair(0),
    )


def _q6_k() -> tuple[Plane, ...]:
    quants = [
        Column(32, (Part(64 * half + 32 * (group % 2), 4 * (group // 2), 4), Part(128 + 32 * half, 2 * group, 2)))
        for half in range(2) for group in range(4)
    ]  # fmt: skip
    return (Plane("quants", tuple(quants), repeats=False, zero=32), _bytes("scales", 192, 16), *_half("d", 208))


def _quants(offset: int, count: int) -> Plane:
    """Whole bytes of quants: several weights of one distribution each, coded jointly."""
    return _bytes("quants", offset, count, repeats=False)


def _q4_k_grid() -> tuple[Plane, ...]:
    """Q4_K with one weight a symbol, as scale classes need it."""
    quants = [Column(32, (Part(16 + 32 * (group // 2), 4 * (group % 2), 4),)) for group in range(8)]
    return (Plane("quants", tuple(quants), repeats=False, zero=8), *_scales_k4(4), *_delta_pair(0))


def _q5_k_grid() -> tuple[Plane, ...]:
    """Q5_K with one weight a symbol."""
    quants = [Column(32, (Part(48 + 32 * (group // 2), 4 * (group % 2), 4), Part(16, group, 1))) for group in range(8)]
    return (Plane("quants", tuple(quants), repeats=False, zero=16), *_scales_k4(4), *_delta_pair(0))


def _q4_0_grid() -> tuple[Plane, ...]:
    """Q4_0 with one weight a symbol."""
    quants = [Column(16, (Part(2, 4 * half, 4),)) for half in range(2)]
    return (*_half("d", 0), Plane("quants", tuple(quants), repeats=False, zero=8))


def _q5_0_grid() -> tuple[Plane, ...]:
    """Q5_0 with the integers of a matrix in its quants."""
    return (*_half("d", 0), replace(_fifth_bits(2, 6), zero=16))


def _q4_1_grid() -> tuple[Plane, ...]:
    """Q4_1 with one weight a symbol."""
    quants = [Column(16, (Part(4, 4 * half, 4),)) for half in range(2)]
    return (*_half("d", 0), *_half("m", 2), Plane("quants", tuple(quants), repeats=False, zero=8))


def _q5_1_grid() -> tuple[Plane, ...]:
    """Q5_1 with the integers of a matrix in its quants."""
    return (*_half("d", 0), *_half("m", 2), replace(_fifth_bits(4, 8), zero=16))


# Nibbles and 2-bit weights stay joined in their byte: the joint entropy is at most the sum, and Huffman codes
# of 256 symbols lose less to whole bits (`tools/symbol_coding.py` on Q4_K: 0.3 % over the entropy, one nibble a
# byte 0.9 %).
_TYPES: dict[GGMLType, tuple[Plane, ...]] = {
    GGMLType.F32: _float32(),
    GGMLType.F16: _float16(),
    GGMLType.BF16: _bfloat16(),
    GGMLType.F64: _element("f64", 8),
    GGMLType.I8: (_bytes("i8", 0, 1),),
    GGMLType.I16: _element("i16", 2),
    GGMLType.I32: _element("i32", 4),
    GGMLType.I64: _element("i64", 8),
    GGMLType.Q1_0: (*_half("d", 0), _quants(2, 16)),
    GGMLType.Q2_0: (*_half("d", 0), _quants(2, 16)),
    GGMLType.Q4_0: (*_half("d", 0), _quants(2, 16)),
    GGMLType.Q4_1: (*_half("d", 0), *_half("m", 2), _quants(4, 16)),
    GGMLType.Q5_0: (*_half("d", 0), _fifth_bits(2, 6)),
    GGMLType.Q5_1: (*_half("d", 0), *_half("m", 2), _fifth_bits(4, 8)),
    GGMLType.Q8_0: (*_half("d", 0), Plane("quants", (Column(32, (Part(2),)),), repeats=False, zero=256)),
    GGMLType.Q8_1: (*_half("d", 0), *_half("s", 2), _quants(4, 32)),
    GGMLType.Q2_K: (_bytes("scales and minima", 0, 16), _quants(16, 64), *_delta_pair(80)),
    GGMLType.Q3_K: _q3_k(),
    GGMLType.Q4_K: (*_delta_pair(0), *_scales_k4(4), _quants(16, 128)),
    GGMLType.Q5_K: _q5_k(),
    GGMLType.Q6_K: _q6_k(),
    GGMLType.Q8_K: (_bytes("d", 0, 4), _quants(4, 256), _bytes("sums", 260, 32)),
    GGMLType.IQ1_S: (*_half("d", 0), _bytes("grid", 2, 32), _bytes("grid high and scales", 34, 16)),
    GGMLType.IQ1_M: (_bytes("grid", 0, 32), _bytes("grid high", 32, 16), _bytes("scales", 48, 8)),
    GGMLType.IQ2_XXS: (*_half("d", 0), _bytes("grid, signs and scales", 2, 64)),
    GGMLType.IQ2_XS: (*_half("d", 0), _bytes("grid and signs", 2, 64), _bytes("scales", 66, 8)),
    GGMLType.IQ2_S: (
        *_half("d", 0), _bytes("grid", 2, 32), _bytes("signs", 34, 32),
        _bytes("grid high", 66, 8), _bytes("scales", 74, 8),
    ),
    GGMLType.IQ3_XXS: (*_half("d", 0), _bytes("grid", 2, 64), _bytes("signs and scales", 66, 32)),
    GGMLType.IQ3_S: (
        *_half("d", 0), _bytes("grid", 2, 64), _bytes("grid high", 66, 8),
        _bytes("signs", 74, 32), _bytes("scales", 106, 4),
    ),
    GGMLType.IQ4_NL: (*_half("d", 0), _quants(2, 16)),
    GGMLType.IQ4_XS: (*_half("d", 0), _bytes("scales high", 2, 2), _bytes("scales low", 4, 4), _quants(8, 128)),
    GGMLType.TQ1_0: (_quants(0, 52), *_half("d", 52)),
    GGMLType.TQ2_0: (_quants(0, 64), *_half("d", 64)),
    GGMLType.MXFP4: (_bytes("scales", 0, 1), _quants(1, 16)),
    GGMLType.NVFP4: (_bytes("scales", 0, 4), _quants(4, 32)),
}  # fmt: skip

BYTES = Layout(0, "bytes", 1, (_bytes("bytes", 0, 1),))
METADATA = Layout(1, "metadata", 1, (_bytes("metadata", 0, 1),))
TEXT = Layout(2, "text", 1, (_bytes("text", 0, 1),))

Q4_K_GRID = Layout(256, "Q4_K grid", GGMLType.Q4_K.block_bytes, _q4_k_grid())
Q5_K_GRID = Layout(257, "Q5_K grid", GGMLType.Q5_K.block_bytes, _q5_k_grid())
Q4_0_GRID = Layout(258, "Q4_0 grid", GGMLType.Q4_0.block_bytes, _q4_0_grid())
Q5_0_GRID = Layout(259, "Q5_0 grid", GGMLType.Q5_0.block_bytes, _q5_0_grid())
Q4_1_GRID = Layout(260, "Q4_1 grid", GGMLType.Q4_1.block_bytes, _q4_1_grid())
Q5_1_GRID = Layout(261, "Q5_1 grid", GGMLType.Q5_1.block_bytes, _q5_1_grid())
_GRIDS = {
    GGMLType.Q4_K: Q4_K_GRID, GGMLType.Q5_K: Q5_K_GRID, GGMLType.Q4_0: Q4_0_GRID, GGMLType.Q5_0: Q5_0_GRID,
    GGMLType.Q4_1: Q4_1_GRID, GGMLType.Q5_1: Q5_1_GRID,
}  # fmt: skip

LAYOUTS: dict[int, Layout] = {layout.id: layout for layout in (BYTES, METADATA, TEXT, *_GRIDS.values())} | {
    _TYPE_BASE + kind: Layout(_TYPE_BASE + kind, kind.name, kind.block_bytes, planes) for kind, planes in _TYPES.items()
}


def layout_of(kind: GGMLType) -> Layout:
    """The layout of a tensor type; `BYTES` for a type without a row."""
    return LAYOUTS.get(_TYPE_BASE + kind, BYTES)


def grid_layout_of(kind: GGMLType) -> Layout:
    """The layout of a tensor type in a file whose integers lie on grids: one weight a symbol."""
    return _GRIDS.get(kind) or layout_of(kind)


def stream_kind(layout: Layout, plane: int) -> int:
    """The number of a stream kind in an archive: layout id × 16 + plane number."""
    return layout.id * 16 + plane


def kind_name(kind: int) -> str:
    """What `inspect` prints for a stream kind: `Q5_K quants`."""
    layout, plane = LAYOUTS.get(kind // 16), kind % 16
    if layout is None:
        return f"unknown {kind}"
    if plane == TAIL:
        return f"{layout.name} tail"
    if plane >= len(layout.planes):
        return f"unknown {kind}"
    name = layout.planes[plane].name
    return name if name == layout.name else f"{layout.name} {name}"
