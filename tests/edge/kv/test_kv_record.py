"""What a file keeps of its caches' costs, what that is bound to, when it is dropped, and what follows from it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Shape, write_random

from edgepack.edge.confidence.binding import contents_digest
from edgepack.edge.fidelity.certificate_file import with_metadata
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.kv.record import Record, find_table, has_record, read_record
from edgepack.edge.kv.table import CacheCost, CacheTable
from edgepack.edge.llama.options import Adapter
from edgepack.errors import UsageError
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import Value, ValueType, string, u32

if TYPE_CHECKING:
    from pathlib import Path


def cost(name: str, kl: float, high: float | None = None, **more: Any) -> CacheCost:
    return CacheCost(name, kl, kl * 1.1 if high is None else high, 0.9, (0.8, 0.95), 1.01, **more)


COSTS = (cost("f16", 0.0), cost("q8_0", 0.001), cost("q8_0/q4_0", 0.004), cost("q5_0", 0.004), cost("q4_0", 0.2))
TABLE = CacheTable(COSTS, 512, 8, 2040, "books.txt", "ab" * 32, "llama-cpp-python 0.3.36")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_random(tmp_path / "m.gguf", Shape(head_width=32, heads=2, kv_heads=1, context=64))


def noted(model: Path, table: CacheTable = TABLE, *adapters: str) -> Path:
    out = model.with_name("noted.gguf")
    record = Record(contents_digest(model, read_header(model)), adapters, table)
    with_metadata(model, record.metadata(), out)
    return out


def test_a_record_is_read_as_it_was_written(model: Path) -> None:
    table = replace(
        TABLE, original="checkpoint",
        costs=(cost("f16", 0.0, original_kl=0.5, original_agreement=0.7), cost("q8_0", 0.1, math.inf)),
    )  # fmt: skip
    found = read_record(read_header(noted(model, table, "a:1")).metadata)
    assert found.table == table
    assert found.adapters == ("a:1",)
    assert not has_record(read_header(model).metadata)


def test_a_table_holds_for_the_contents_that_it_was_measured_on_and_no_others(model: Path) -> None:
    path = noted(model)
    header = read_header(path)
    assert find_table(path, header).table == TABLE
    data = bytearray(path.read_bytes())
    data[header.data_start + 8] ^= 1
    path.write_bytes(data)
    found = find_table(path, read_header(path))
    assert found.table is None
    assert "measured on contents" in found.problem
    assert "run edgepack kv again" in found.problem


def test_other_adapters_drop_the_table(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "a.gguf"
    adapter.write_bytes(b"adapter")
    path = noted(model)
    found = find_table(path, read_header(path), [Adapter(adapter)])
    assert found.table is None
    assert "other adapters" in found.problem


def test_a_file_without_a_table_says_nothing(model: Path) -> None:
    found = find_table(model, read_header(model))
    assert (found.table, found.problem) == (None, "")


def test_the_smallest_cache_that_is_surely_within_the_bound_is_taken(model: Path) -> None:
    shape = read_shape(read_header(model))

    def smallest(max_kl: float, *costs: CacheCost) -> str | None:
        found = replace(TABLE, max_kl=max_kl, costs=costs or COSTS).smallest(shape)
        return None if found is None else found.name

    assert smallest(0.3) == "q4_0"
    assert smallest(0.01) == "q5_0"  # smaller than q8_0/q4_0
    assert smallest(0.002) == "q8_0"
    assert smallest(0.0005) is None
    assert smallest(0.00105, cost("q8_0", 0.001, 0.0011)) is None  # the interval's end counts, not the mean
    assert smallest(1.0, cost("q8_0", 0.001, math.inf)) is None
    assert smallest(1.0, cost("f32", 0.0), cost("bf16", 0.0)) is None  # no smaller than f16
    assert smallest(0.3, cost("q4_0", 0.2), cost("iq4_nl", 0.1)) == "iq4_nl"  # of equal size, the more faithful


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        (keys.KV_VERSION, u32(2), "newer edgepack"),
        (keys.KV_VERSION, string("1"), "uint32"),
        (keys.KV_DIGEST, u32(1), "string"),
        (keys.KV_TABLE, string("{"), "expected JSON"),
        (keys.KV_TABLE, string("[]"), "JSON object"),
        (keys.KV_TABLE, string("{}"), r"caches: expected a list"),
        (keys.KV_TABLE, string(" " * (1 << 18) + "{}"), "characters"),
        (keys.KV_TABLE, string("[" * 100_000), "expected JSON"),
        (keys.KV_ADAPTERS, string("a"), "array"),
    ],
)
def test_a_record_that_is_not_sound_is_refused_by_key(model: Path, key: str, value: Value, match: str) -> None:
    metadata = {**read_header(noted(model)).metadata, key: value}
    with pytest.raises(UsageError, match=match):
        read_record(metadata)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kv_type", "q3_k"), ("kv_type", 3), ("kl", -1), ("kl", True), ("kl", "0.1"), ("kl", float("nan")), ("kl", 1e301),
        ("agreement_interval", [1]), ("agreement_interval", [0.5, None]), ("perplexity_ratio", None),
        ("kl_high", float("inf")),
    ],
)  # fmt: skip
def test_a_row_that_is_not_sound_is_refused(model: Path, field: str, value: Any) -> None:
    told = TABLE.json()
    told["caches"][1][field] = value
    metadata = {**read_header(noted(model)).metadata, keys.KV_TABLE: string(json.dumps(told))}
    with pytest.raises(UsageError):
        read_record(metadata)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from([*TABLE.json(), "x"]), json_values),
    st.dictionaries(
        st.sampled_from(["kl", "kv_type", "agreement", "agreement_interval", "kl_high", "original_kl"]), json_values
    ),
)
def test_whatever_a_table_says_is_read_or_refused(table: dict[str, Any], row: dict[str, Any]) -> None:
    told = {**TABLE.json(), **table}
    if isinstance(told["caches"], list) and told["caches"] and isinstance(told["caches"][0], dict):
        told["caches"][0] = {**told["caches"][0], **row}
    metadata = {
        keys.KV_VERSION: u32(1), keys.KV_DIGEST: string("d"), keys.KV_TABLE: string(json.dumps(told)),
    }  # fmt: skip
    try:
        found = read_record(metadata).table
    except UsageError:
        return
    assert all(one.kl >= 0 and one.agreement >= 0 for one in found.costs)


def test_version_and_types_of_keys_are_stated(model: Path) -> None:
    metadata = read_header(noted(model)).metadata
    assert metadata[keys.KV_VERSION] == Value(ValueType.UINT32, 1)
    assert json.loads(metadata[keys.KV_TABLE].value)["caches"][0]["kv_type"] == "f16"
