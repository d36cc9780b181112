"""Slow decoders written from packaging/VARIANT.md alone, one weight at a time: the independent reference."""

from __future__ import annotations

from itertools import pairwise
from math import gcd
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
    taps = {16: (0, 1, 3, 12), 8: (0, 2, 3, 4), 7: (0, 1), 5: (0, 2)}[k]
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


def trajectory(encoded: Encoded) -> list[float]:
    n, classes = int(encoded.parameters["points"]), int(encoded.parameters["classes"])
    side, ratio = float(encoded.parameters["side"]), float(encoded.parameters["ratio"])
    centre = (float(encoded.parameters["centre_x"]), float(encoded.parameters["centre_y"]))
    wanted = round(n * (5**0.5 - 1) / 2)
    distance = 0
    while True:
        coprime = [w for w in (wanted - distance, wanted + distance) if w > 0 and gcd(w, n) == 1]
        if coprime:
            break
        distance += 1
    bits = max(1, (n * classes - 1).bit_length())
    weights: list[float] = []
    for pair in range(-(-encoded.shape[0] * encoded.shape[1] // 2)):
        kind, point = divmod(stream(encoded.components["indices"], bits, pair), n)
        scale = side * ratio**kind
        x, y = (point + 0.5) / n, (point + 0.5) * coprime[0] / n % 1.0
        weights += [centre[0] + scale * (x - 0.5), centre[1] + scale * (y - 0.5)]
    return weights[: encoded.shape[0] * encoded.shape[1]]


def bezier(encoded: Encoded) -> list[float]:
    bits, segment, degree = (int(encoded.parameters[key]) for key in ("index_bits", "segment", "degree"))
    weights = []
    for index in range(encoded.shape[0] * encoded.shape[1]):
        first = index // segment * (degree + 1)
        points = [float(p) for p in encoded.components["control_points"][first : first + degree + 1]]
        t = stream(encoded.components["places"], bits, index) / (2**bits - 1)
        while len(points) > 1:  # de Casteljau
            points = [(1 - t) * a + t * b for a, b in pairwise(points)]
        weights.append(points[0] * float(encoded.parameters["scale"]))
    return weights


def vptq(encoded: Encoded) -> list[float]:
    parameters, arrays = encoded.parameters, encoded.components
    v, scale = int(parameters["vector"]), float(parameters["scale"])
    rows, columns = encoded.shape
    outliers = [int(column) for column in arrays.get("outlier_columns", ())]
    plain = [column for column in range(columns) if column not in outliers]

    def entry(prefix: str, row: int, place: int, width: int) -> float:
        book = arrays[f"{prefix}centroids"]
        bits = (len(book) // v - 1).bit_length()
        index = stream(arrays[f"{prefix}indices"], bits, row // v * width + place)
        return float(book[index * v + row % v]) * scale

    weights = []
    for row in range(rows):
        for column in range(columns):
            if column in outliers:
                value = entry("outlier_", row, outliers.index(column), len(outliers))
            else:
                value = entry("", row, plain.index(column), len(plain))
                if int(parameters["residual_centroids"]):
                    value += entry("residual_", row, plain.index(column), len(plain))
            if parameters["normalise"] == "row":
                value *= float(arrays["row_scale"][row])
            if parameters["normalise"] == "column":
                value = value * float(arrays["column_scale"][column]) + float(arrays["column_bias"][column]) * scale
            weights.append(value)
    return weights
