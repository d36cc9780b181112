"""Where f16 does not fit, a file's own table decides, within the bound that it states; what the user says stands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tiny_models import Shape, write_sparse

import edgepack
from edgepack.edge.fit import measured
from edgepack.edge.fit.choice import Fitter, FitWish
from edgepack.edge.fit.devices import Device, find_device
from edgepack.edge.fit.measured import fit_measured, settled
from edgepack.edge.fit.opening import OpenWish, runtime_options
from edgepack.edge.fit.shape import ModelShape, read_shape
from edgepack.edge.kv.record import Found, Record
from edgepack.edge.kv.table import CacheCost, CacheTable
from edgepack.gguf.reader import GGUFHeader, read_header

if TYPE_CHECKING:
    from pathlib import Path

CTX = 8192


def cost(name: str, kl: float) -> CacheCost:
    return CacheCost(name, kl, kl, 0.9, (0.9, 0.9), 1.0)


TABLE = CacheTable(
    (cost("f16", 0.0), cost("q8_0", 0.001), cost("q8_0/q4_0", 0.004), cost("q4_0", 0.2)),
    512, 8, 2040, "t", "0", "llama.cpp",
)  # fmt: skip


@pytest.fixture
def header(tmp_path: Path) -> GGUFHeader:
    """A model whose caches weigh more than its weights; its table is stated, its contents are not what is asked here."""
    made = Shape(layers=8, head_width=64, heads=8, kv_heads=8, width=512, context=CTX, n_vocab=512)
    noted = replace(made, extra=dict(Record("d", (), TABLE).metadata()))
    return read_header(write_sparse(tmp_path / "m.gguf", noted))


def device_for(shape: ModelShape, kv: str) -> Device:
    """A CPU on which this cache fits at the whole context, and none that is larger."""
    base = find_device("laptop-8gb")
    low, high = 1 << 28, 1 << 36
    while high - low > 1 << 20:
        middle = (low + high) // 2
        fitter = Fitter(shape, replace(base, memory=middle, free=middle), FitWish(n_ctx=CTX, kv_type=kv))
        low, high = (low, middle) if fitter.choose().fits else (middle, high)
    return replace(base, memory=high, free=high)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The table is found; how often it was asked for."""
    asked: list[Any] = []

    def find(*arguments: Any, **_named: Any) -> Found:
        asked.append(arguments)
        return Found(TABLE)

    monkeypatch.setattr(measured, "find_table", find)
    return asked


@pytest.mark.parametrize(
    ("room", "max_kl", "expected"),
    [("f16", 0.01, "f16"), ("q8_0", 0.01, "q8_0/q4_0"), ("q8_0", 0.002, "q8_0"), ("q4_0", 0.3, "q4_0")],
)
def test_the_smallest_cache_within_the_bound_is_taken_where_f16_does_not_fit(
    room: str, max_kl: float, expected: str, header: GGUFHeader, found: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "find_table", lambda *_a, **_n: Found(replace(TABLE, max_kl=max_kl)))
    shape = read_shape(header)
    result = fit_measured(shape, device_for(shape, room), FitWish(n_ctx=CTX), header.path, header)
    assert result.fit.fits
    assert result.fit.request.kv_type == expected
    if expected != "f16":
        assert result.cost is not None
        assert result.cost.name == expected
        assert f"kept as {expected}" in result.fit.reason


def test_nothing_is_read_where_everything_fits_with_f16(header: GGUFHeader, found: list[Any]) -> None:
    shape = read_shape(header)
    assert fit_measured(shape, device_for(shape, "f16"), FitWish(n_ctx=CTX), header.path, header).cost is None
    assert found == []


def test_where_no_smaller_cache_is_within_the_bound_the_context_gives_way(
    header: GGUFHeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "find_table", lambda *_a, **_n: Found(replace(TABLE, max_kl=1e-6)))
    shape = read_shape(header)
    fit = fit_measured(shape, device_for(shape, "q8_0"), FitWish(), header.path, header).fit
    assert fit.fits
    assert fit.request.kv_type == "f16"
    assert fit.request.n_ctx < CTX


def test_a_table_that_does_not_hold_changes_nothing_but_says_so(header: GGUFHeader, tmp_path: Path) -> None:
    shape = read_shape(header)
    device = device_for(shape, "q8_0")
    result = fit_measured(shape, device, FitWish(n_ctx=CTX), header.path, header)  # its digest is "d"
    assert result.fit.request.kv_type == "q8_0"
    assert "dropped: measured on contents d" in result.problem


def test_what_the_user_insists_on_is_never_overruled(header: GGUFHeader, found: list[Any]) -> None:
    shape = read_shape(header)
    result = fit_measured(shape, device_for(shape, "q4_0"), FitWish(n_ctx=CTX, kv_type="q4_0"), header.path, header)
    assert result.fit.request.kv_type == "q4_0"
    assert result.cost is not None
    assert result.cost.kl == 0.2


def test_keys_and_values_of_two_types_reach_the_engine(header: GGUFHeader) -> None:
    options = runtime_options(header, OpenWish(device="cpu", kv_type="q8_0/q4_0", n_ctx=512, threads=1))
    assert (options.kv_type_k, options.kv_type_v) == ("q8_0", "q4_0")


def test_auto_is_the_same_as_nothing_said(header: GGUFHeader) -> None:
    assert settled("auto") is None
    assert settled("q8_0") == "q8_0"
    options = runtime_options(header, OpenWish(device="cpu", kv_type="auto", n_ctx=512, threads=1))
    assert options.kv_type_k == options.kv_type_v == "f16"


def test_fit_of_two_types_names_both(header: GGUFHeader) -> None:
    found = edgepack.fit(header.path, device="laptop-8gb", kv_type="q8_0/q4_0", probe=False)
    assert found.kv_type == "q8_0/q4_0"
    assert list(found.largest_ctx) == ["q8_0/q4_0"]
    assert all(row.kv_type == "q8_0/q4_0" for row in found.contexts)
