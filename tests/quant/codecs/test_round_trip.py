"""Every codec keeps the shape and its stated error for any shape, and decodes as its specification says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import slow_decoders

from edgepack.errors import CodecError, NumericError
from edgepack.quant.codecs.bezier import Bezier
from edgepack.quant.codecs.codec import Encoded
from edgepack.quant.codecs.decode import decode
from edgepack.quant.codecs.nf4 import NF4, NF4_LEVELS, dynamic_map
from edgepack.quant.codecs.registry import CODECS, codec_class, open_decoder
from edgepack.quant.codecs.seedlm.codec import SeedLM
from edgepack.quant.codecs.ternary import Ternary
from edgepack.quant.codecs.trajectory import Trajectory
from edgepack.quant.codecs.vptq.codec import VPTQ

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgepack.quant.codecs.codec import Codec

# (codec, largest ‖W - Ŵ‖² / ‖W‖² on Gaussian matrices of any shape); short registers keep searches short.
STATED: list[tuple[Codec, float]] = [
    (NF4(), 0.03),
    (Ternary("tensor"), 0.6),
    (Ternary("row"), 0.6),
    (Ternary("block", "least-squares"), 0.6),
    (SeedLM(register_bits=8), 0.2),
    (SeedLM(5, 2, 5), 0.5),
    (Trajectory(), 0.01),
    (Trajectory(256, 2), 0.2),
    (Bezier(), 0.02),
    (Bezier(3, 32, 2), 0.2),
    (VPTQ(2, normalise="none"), 0.4),
    (VPTQ(3, vector=3, residual="yes", outliers=0.1), 0.3),
]
IDS = [str(codec) for codec, _limit in STATED]


def relative_error(weight: NDArray[np.float32], decoded: NDArray[np.float32]) -> float:
    return float(((weight - decoded) ** 2).sum(dtype=np.float64) / (weight.astype(np.float64) ** 2).sum())


def gaussian(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


@pytest.mark.parametrize(("codec", "limit"), STATED, ids=IDS)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 300), seed=st.integers(0, 99), power=st.integers(-12, 12))
def test_any_shape_and_scale_keep_shape_and_error(
    codec: Codec, limit: float, rows: int, columns: int, seed: int, power: int
) -> None:
    weight = gaussian(rows, columns, seed) * np.float32(2.0**power)
    encoded = codec.encode(weight)
    decoded = decode(encoded, threads=1)
    assert decoded.shape == weight.shape
    assert decoded.dtype == np.float32
    # A handful of weights may lie badly; the stated error is of matrices.
    assert relative_error(weight, decoded) <= (limit if weight.size >= 200 else max(limit, 0.9))
    sizes = codec.layout((rows, columns), encoded.parameters)
    assert encoded.nbytes == sum(component.nbytes for component in sizes.values())


@pytest.mark.parametrize(("codec", "limit"), STATED, ids=IDS)
def test_zeros_stay_zeros(codec: Codec, limit: float) -> None:
    assert not decode(codec.encode(np.zeros((3, 70), np.float32))).any()


@pytest.mark.parametrize(("codec", "limit"), STATED, ids=IDS)
def test_constants_and_one_outlier_keep_the_stated_error(codec: Codec, limit: float) -> None:
    constant = np.full((5, 130), -0.37, np.float32)
    assert relative_error(constant, decode(codec.encode(constant))) <= limit
    outlier = gaussian(5, 130) * np.float32(0.02)
    outlier[2, 77] = 1e4
    # Under one absmean scale for many weights an outlier is lost: ternary cannot hold it.
    assert relative_error(outlier, decode(codec.encode(outlier))) <= (1.0 if codec.name == "ternary" else limit)


@pytest.mark.parametrize(("codec", "limit"), STATED, ids=IDS)
def test_any_range_of_rows_equals_the_whole(codec: Codec, limit: float) -> None:
    weight = gaussian(23, 37)
    encoded = codec.encode(weight)
    whole, decoder = decode(encoded), open_decoder(encoded)
    for start, stop in ((0, 1), (5, 6), (7, 23), (22, 23), (4, 4)):
        assert np.array_equal(decoder.rows(start, stop), whole[start:stop])


@pytest.mark.parametrize(("codec", "limit"), STATED, ids=IDS)
def test_encoding_is_deterministic_and_leaves_its_input_alone(codec: Codec, limit: float) -> None:
    weight = gaussian(16, 40)
    before = weight.copy()
    first, second = codec.encode(weight), codec.encode(weight)
    assert np.array_equal(weight, before)
    assert first.parameters == second.parameters
    for name, array in first.components.items():
        assert np.array_equal(array, second.components[name])


@pytest.mark.parametrize(("codec", "limit"), STATED, ids=IDS)
def test_bad_weights_are_refused(codec: Codec, limit: float) -> None:
    with pytest.raises(NumericError):
        codec.encode(np.array([[1.0, np.nan]], np.float32))
    with pytest.raises(CodecError):
        codec.encode(np.zeros((0, 4), np.float32))


@pytest.mark.parametrize(("codec", "limit"), STATED, ids=IDS)
def test_hostile_components_are_refused_by_name(codec: Codec, limit: float) -> None:
    encoded = codec.encode(gaussian(4, 50))

    def changed(**changes: object) -> Encoded:
        return Encoded(**{**vars(encoded), **changes})  # type: ignore[arg-type]

    name, array = next(iter(encoded.components.items()))
    with pytest.raises(CodecError, match=name):
        open_decoder(changed(components={key: value for key, value in encoded.components.items() if key != name}))
    with pytest.raises(CodecError, match=name):
        open_decoder(changed(components={**encoded.components, name: array[:-1]}))
    with pytest.raises(CodecError, match=name):
        open_decoder(changed(components={**encoded.components, name: array.astype(np.float64)}))
    with pytest.raises(CodecError, match="unknown component"):
        open_decoder(changed(components={**encoded.components, "extra": array}))
    with pytest.raises(CodecError, match="newer edgepack"):
        open_decoder(changed(version=99))
    with pytest.raises(CodecError, match="newer edgepack"):
        open_decoder(changed(codec="quantum"))
    with pytest.raises(CodecError, match="component"):
        open_decoder(changed(shape=(2**40, 2**40)))
    for key in encoded.parameters:
        real = isinstance(encoded.parameters[key], float)
        for value in (None, float("nan"), "x", [] if real else 10**9, True):
            with pytest.raises(CodecError, match=key):
                open_decoder(changed(parameters={**encoded.parameters, key: value}))


@pytest.mark.parametrize(
    ("codec", "reference"),
    [
        (SeedLM(register_bits=8), slow_decoders.seedlm),
        (SeedLM(5, 2, 5), slow_decoders.seedlm),
        (Ternary("block"), slow_decoders.ternary),
        (Ternary("row"), slow_decoders.ternary),
        (Ternary("tensor"), slow_decoders.ternary),
        (NF4(), slow_decoders.nf4),
        (Trajectory(), slow_decoders.trajectory),
        (Trajectory(100, 1), slow_decoders.trajectory),
        (Bezier(5, 64, 4), slow_decoders.bezier),
        (Bezier(), slow_decoders.bezier),
        (VPTQ(2), slow_decoders.vptq),
        (VPTQ(3, residual="yes", outliers=0.1, normalise="row"), slow_decoders.vptq),
        (VPTQ(3, vector=2, normalise="column"), slow_decoders.vptq),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_decoding_equals_a_slow_reading_of_the_specification(
    codec: Codec, reference: Callable[[Encoded], list[float]]
) -> None:
    encoded = codec.encode(gaussian(3, 523) * np.float32(0.02))
    assert np.allclose(decode(encoded).reshape(-1), reference(encoded), rtol=2e-6, atol=1e-7)


def test_every_codec_is_registered_under_its_own_name() -> None:
    for name in CODECS:
        assert codec_class(name).name == name


def test_nf4_levels_are_kept_exactly() -> None:
    """A matrix that holds NF4 levels already is decoded to within the coding of its one scale."""
    weight = np.tile(NF4_LEVELS, 16).reshape(1, 256)
    assert np.abs(decode(NF4().encode(weight)) - weight).max() <= 1e-6


def test_the_dynamic_map_has_256_ascending_levels() -> None:
    levels = dynamic_map()
    assert levels.shape == (256,)
    assert (np.diff(levels) > 0).all()
    assert levels[-1] == 1
    assert 0 in levels
    assert levels[0] == pytest.approx(-0.99296875)
