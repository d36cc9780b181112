"""What a file keeps of its confidence, what that is bound to, and when it is dropped."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Shape, write_random

from edgepack.edge.confidence.binding import adapter_digests, contents_digest
from edgepack.edge.confidence.calibrators import Temperature
from edgepack.edge.confidence.features import observe_answer
from edgepack.edge.confidence.opening import find_record
from edgepack.edge.confidence.record import Fitted, Record, Verdict, has_record, read_record
from edgepack.edge.fidelity.certificate_file import with_metadata
from edgepack.edge.llama.chances import TokenChances
from edgepack.edge.llama.options import Adapter
from edgepack.errors import UsageError
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import Value, ValueType, string, u32

if TYPE_CHECKING:
    from pathlib import Path

FITTED = Fitted("text", Temperature(2.0), 0.5, (1, 3), {"ece": 0.01})
TOKEN = TokenChances(1, -0.2, ((1, -0.2), (2, -2.0)))


def record(digest: str = "d", *adapters: str, **forms: Fitted) -> Record:
    return Record(digest, adapters, forms or {"text": FITTED})  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_random(tmp_path / "m.gguf", Shape(context=64))


def calibrated(model: Path, *adapters: str, **forms: Fitted) -> Path:
    digest = contents_digest(model, read_header(model))
    out = model.with_name("calibrated.gguf")
    with_metadata(model, record(digest, *adapters, **forms).metadata(), out)
    return out


def test_a_record_is_read_as_it_was_written(model: Path) -> None:
    path = calibrated(model, "a:1", text=FITTED, chat=replace(FITTED, form="chat", threshold=2.0))
    found = read_record(read_header(path).metadata)
    assert found.fitted["text"] == FITTED
    assert found.fitted["chat"].threshold == 2.0
    assert found.adapters == ("a:1",)
    assert not has_record(read_header(model).metadata)


def test_the_digest_sees_what_a_model_answers_by_and_nothing_else(model: Path) -> None:
    digest = contents_digest(model, read_header(model))
    other = model.with_name("other.gguf")
    for key, value in (("edgepack.certificate", "{}"), ("general.name", "x"), ("edgepack.confidence.text", "{}")):
        with_metadata(model, {key: string(value)}, other)
        assert contents_digest(other, read_header(other)) == digest, key
    for key, changed in ((keys.CHAT_TEMPLATE, string("x")), ("llama.rope.freq_base", Value(ValueType.FLOAT32, 5.0))):
        with_metadata(model, {key: changed}, other)
        assert contents_digest(other, read_header(other)) != digest, key
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    other.write_bytes(raw)
    assert contents_digest(other, read_header(other)) != digest
    assert contents_digest(write_random(other, Shape(context=64), seed=5), read_header(other)) != digest


def test_a_record_of_this_file_is_found(model: Path) -> None:
    path = calibrated(model)
    found = find_record(path, read_header(path))
    assert found.problem == ""
    assert found.record is not None
    assert found.record.fitted["text"] == FITTED
    assert find_record(model, read_header(model)) == type(found)(None)


def test_a_record_of_other_contents_is_dropped_with_a_reason(model: Path) -> None:
    path = calibrated(model)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    found = find_record(path, read_header(path))
    assert found.record is None
    assert "is dropped: it was fitted on contents" in found.problem
    assert "\n" not in found.problem


def test_a_record_is_dropped_with_other_adapters_and_kept_with_its_own(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    adapter.write_bytes(b"adapter")
    own = [Adapter(adapter, 0.5)]
    path = calibrated(model, *adapter_digests(own))
    header = read_header(path)
    assert find_record(path, header, own).record is not None
    assert "other adapters" in find_record(path, header).problem
    assert "other adapters" in find_record(path, header, [Adapter(adapter)]).problem


def test_chats_through_another_template_lose_their_record_alone(model: Path) -> None:
    path = calibrated(model, text=FITTED, chat=replace(FITTED, form="chat"))
    found = find_record(path, read_header(path), own_template=False)
    assert found.record is not None
    assert list(found.record.fitted) == ["text"]
    assert "own chat template" in found.problem


def test_a_broken_record_is_dropped_with_a_reason(model: Path) -> None:
    path = model.with_name("broken.gguf")
    with_metadata(model, {**record().metadata(), "edgepack.confidence.text": string("[]")}, path)
    found = find_record(path, read_header(path))
    assert found.record is None
    assert "is dropped: edgepack.confidence.text: expected a JSON object, got list" in found.problem


def changed(**parts: Any) -> dict[str, Value]:
    told = json.loads(str(record().metadata()["edgepack.confidence.text"].value)) | parts
    return {**record().metadata(), "edgepack.confidence.text": string(json.dumps(told))}


HOSTILE = {
    "no version": ({keys.CONFIDENCE_DIGEST: string("d")}, "version: expected a value of type uint32, got nothing"),
    "a later version": ({**record().metadata(), keys.CONFIDENCE_VERSION: u32(2)}, "expected 1, got 2"),
    "a version of text": ({**record().metadata(), keys.CONFIDENCE_VERSION: string("1")}, "got string"),
    "no digest": ({keys.CONFIDENCE_VERSION: u32(1)}, "digest: expected a value of type string, got nothing"),
    "no form": (
        {keys.CONFIDENCE_VERSION: u32(1), keys.CONFIDENCE_DIGEST: string("d")}, "expected one of text, chat, choice",
    ),
    "adapters of text": ({**record().metadata(), keys.CONFIDENCE_ADAPTERS: string("d")}, "expected a value of type array"),
    "no JSON": ({**record().metadata(), "edgepack.confidence.text": string("{")}, "expected JSON"),
    "deep JSON": ({**record().metadata(), "edgepack.confidence.text": string("[" * 100_000)}, "expected JSON"),
    "much JSON": ({**record().metadata(), "edgepack.confidence.text": string(" " * (2 << 20))}, "at most 1048576"),
    "a threshold of text": (changed(threshold="1"), "threshold: expected 0 to 2"),
    "a negative threshold": (changed(threshold=-1), "threshold: expected 0 to 2"),
    "lengths": (changed(lengths=[3, 1]), "lengths: expected two whole numbers"),
    "lengths of text": (changed(lengths="12"), "lengths: expected two whole numbers"),
    "a huge length": (changed(lengths=[0, 2**40]), "lengths: expected two whole numbers"),
    "figures": (changed(figures={"a": "b"}), "figures: expected finite numbers"),
    "huge figures": (changed(figures={"a": 10**400}), "figures: expected finite numbers"),
    "many figures": (changed(figures={str(n): n for n in range(99)}), "figures: expected an object of at most"),
    "a calibrator": (changed(calibrator={"method": "x"}), "calibrator.method: expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_one_line(name: str) -> None:
    metadata, said = HOSTILE[name]
    with pytest.raises(UsageError) as caught:
        read_record(metadata)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["calibrator", "threshold", "lengths", "figures", "method", "temperature", "odds"]), inner),
    max_leaves=15,
))  # fmt: skip
def test_any_json_is_a_record_or_one_line(told: Any) -> None:
    try:
        read_record({**record().metadata(), "edgepack.confidence.text": string(json.dumps(told))})
    except UsageError as error:
        assert len(str(error)) < 300  # noqa: PT017


def test_verdicts_by_hand() -> None:
    sure = FITTED.judge([TOKEN])
    assert sure.confidence == pytest.approx(2.718281828**-0.1)
    assert (sure.route, sure.in_range, sure.threshold) == ("answer", True, 0.5)
    assert replace(FITTED, threshold=0.95).judge([TOKEN]).route == "escalate"
    long = FITTED.judge([TOKEN] * 4)
    assert (long.confidence, long.route, long.in_range) == (pytest.approx(sure.confidence), "escalate", False)
    assert FITTED.judge([]) == Verdict(None, "escalate", 0.5, in_range=False)
    assert "escalate" in str(FITTED.judge([]))
    assert "longer or shorter" in str(long)
    seen = observe_answer([TOKEN])
    assert seen is not None
    assert FITTED.verdict(seen, 1) == sure
