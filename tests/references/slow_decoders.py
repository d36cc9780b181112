"""Slow decoders written from packaging/VARIANT.md alone, one weight at a time: the independent reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from edgepack.quant.codecs.codec import Encoded


def stream(array: np.ndarray[Any, Any], bits: int, index: int) -> int:
    """Number `index` of a bit stream."""
    whole = int.from_bytes(array.tobytes(), "little")
    return whole >> (bits * index) & ((1 << bits) - 1)


def seedlm(encoded: Encoded) -> list[float]:
    c, p, k = (int(encoded.parameters[key]) for key in ("block", "coefficients", "register_bits"))
    taps = {16: (0, 1, 3, 12), 8: (0, 2, 3, 4), 5: (0, 2)}[k]
    weights: list[float] = []
    for block in range(-(-encoded.shape[0] * encoded.shape[1] // c)):
        state = stream(encoded.components["seeds"], k, block)
        exponent = stream(encoded.components["exponents"], 4, block) + int(encoded.parameters["exponent_bias"])
        q = [stream(encoded.components["coefficients"], 4, block * p + i) for i in range(p)]
        for _row in range(c):
            total = 0.0
            for column in range(p):
                feedback = 0
                for tap in taps:
                    feedback ^= state >> tap & 1
                state = state >> 1 | feedback << (k - 1)
                total += (state - 2 ** (k - 1)) / (2 ** (k - 1) - 1) * (q[column] - 16 * (q[column] > 7))
            weights.append(total * 2.0**exponent)
    return weights[: encoded.shape[0] * encoded.shape[1]]


def ternary(encoded: Encoded) -> list[float]:
    columns = encoded.shape[1]
    blocks = -(-columns // 256)
    weights = []
    for index in range(encoded.shape[0] * columns):
        trit = int(encoded.components["trits"][index // 5]) // 3 ** (index % 5) % 3 - 1
        row, column = divmod(index, columns)
        scale = {"tensor": 0, "row": row, "block": row * blocks + column // 256}[str(encoded.parameters["scale"])]
        weights.append(trit * float(encoded.components["scales"][scale]))
    return weights


def nf4(encoded: Encoded) -> list[float]:
    levels = [0.0, 1.0]
    for decade in range(7):
        width = 0.9 / 2**decade
        centres = [(0.1 + width * (i + 0.5)) * 10.0 ** (decade - 6) for i in range(2**decade)]
        levels += centres + [-centre for centre in centres]
    levels.sort()
    quantiles = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    weights = []
    for index in range(encoded.shape[0] * encoded.shape[1]):
        byte = int(encoded.components["weights"][index // 2])
        block = index // 64
        nested = float(encoded.components["nested_absmax"][block // 256])
        scale = levels[int(encoded.components["absmax"][block])] * nested + float(encoded.parameters["offset"])
        weights.append(quantiles[byte & 15 if index % 2 else byte >> 4] * scale)
    return weights
