"""A calibrated file's server says how sure answers are, in every protocol, and changes nothing else of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from serving import Server, ask, ask_all, start

from edgepack.edge.confidence.binding import contents_digest
from edgepack.edge.confidence.calibrators import Temperature
from edgepack.edge.confidence.record import Fitted, Record
from edgepack.edge.fidelity.certificate_file import with_metadata
from edgepack.edge.llama.chances import told_chances
from edgepack.edge.serve.protocol.confidence import Confident, verdict_headers
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

TEXT = Fitted("text", Temperature(2.0), 0.0, (1, 4))
CHAT = replace(TEXT, form="chat", calibrator=Temperature(3.0), threshold=1.5)
PROMPT = {"prompt": "abc", "max_tokens": 3, "temperature": 0}
WANTED = {"type": "object", "properties": {"colour": {"enum": ["red"]}}, "required": ["colour"]}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": WANTED}}
MESSAGES = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def calibrated_model(served_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / served_model.name
    record = Record(contents_digest(served_model, read_header(served_model)), (), {"text": TEXT, "chat": CHAT})
    with_metadata(served_model, record.metadata(), path)
    return path


@pytest.fixture(scope="module")
def calibrated(calibrated_model: Path) -> Iterator[Server]:
    running = start(calibrated_model)
    yield running
    assert "dropped" not in running.stop()


@pytest.fixture
def twins(served_model: Path, calibrated_model: Path) -> Iterator[tuple[Server, Server]]:
    """Without and with a calibration, neither asked before: what a slot remembers changes last digits."""
    without_it, with_it = start(served_model), start(calibrated_model)
    yield without_it, with_it
    without_it.stop()
    with_it.stop()


def events(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    status, text = ask(server, path, {**body, "stream": True})
    assert status == 200
    lines = [line.removeprefix("data: ") for line in str(text).splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def headers(server: Server, path: str, body: dict[str, Any]) -> dict[str, str]:
    return ask_all(server, path, body)[2]


def expected(choice: dict[str, Any], fitted: Fitted) -> float:
    """The verdict's confidence, of the log-probabilities that the client asked for itself."""
    tokens = [told_chances(one) for one in choice["logprobs"]["content"]]
    confidence = fitted.judge(tokens).confidence
    assert confidence is not None
    return confidence


def without(value: Any, *names: str) -> Any:
    """JSON without what differs from answer to answer: names, times, the last digits of what was computed."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: without(item, *names) for key, item in value.items() if key not in names}
    return [without(item, *names) for item in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    return without(value, "id", "created", "timings", "edgepack", "cached_tokens", "created_at", "item_id")


@pytest.mark.parametrize(
    ("path", "body", "fitted"),
    [("/v1/completions", {**PROMPT, "logprobs": 12}, TEXT),
     ("/v1/chat/completions", {**MESSAGES, "logprobs": True, "top_logprobs": 12}, CHAT)],
)  # fmt: skip
def test_the_confidence_is_the_one_that_the_log_probabilities_give(
    calibrated: Server, path: str, body: dict[str, Any], fitted: Fitted
) -> None:
    _status, answer = ask(calibrated, path, body)
    (choice,) = answer["choices"]
    assert choice["edgepack"]["confidence"] == pytest.approx(expected(choice, fitted), rel=1e-6)
    assert choice["edgepack"]["route"] == ("answer" if fitted is TEXT else "escalate")
    assert choice["edgepack"]["in_range"] is True
    told = headers(calibrated, path, body)
    assert float(told["x-edgepack-confidence"]) == pytest.approx(choice["edgepack"]["confidence"], abs=1e-3)
    assert told["x-edgepack-route"] == choice["edgepack"]["route"]


BODIES = {
    "plain": ("/v1/completions", PROMPT),
    "one alternative": ("/v1/completions", {**PROMPT, "logprobs": 1}),
    "as many as OpenAI allows": ("/v1/completions", {**PROMPT, "logprobs": 20}),
    "none": ("/v1/completions", {**PROMPT, "logprobs": 0}),
    "llama.cpp's own field": ("/v1/completions", {**PROMPT, "n_probs": 2}),
    "chat": ("/v1/chat/completions", MESSAGES),
    "chat with two alternatives": ("/v1/chat/completions", {**MESSAGES, "logprobs": True, "top_logprobs": 2}),
    "chat with log-probabilities": ("/v1/chat/completions", {**MESSAGES, "logprobs": True}),
    "chat with tools": ("/v1/chat/completions", {**MESSAGES, "tools": [TOOL]}),
    "Anthropic": ("/v1/messages", MESSAGES),
    "responses": ("/v1/responses", {"input": "abc", "max_output_tokens": 3, "temperature": 0}),
}


@pytest.mark.parametrize("name", BODIES)
def test_nothing_else_of_an_answer_changes(twins: tuple[Server, Server], name: str) -> None:
    (server, calibrated), (path, body) = twins, BODIES[name]
    (status, without_it), (_status, with_it) = ask(server, path, body), ask(calibrated, path, body)
    assert status == 200
    assert plain(with_it) == plain(without_it)
    assert "edgepack" not in json.dumps(without_it)
    holder = with_it["choices"][0] if "choices" in with_it else with_it
    assert set(holder["edgepack"]) == {"confidence", "route", "threshold", "in_range"}
    streamed = events(calibrated, path, body)
    assert plain(streamed) == plain(events(server, path, body))
    assert json.dumps(streamed[-3:]).count('"edgepack": {') == 1


def test_each_of_several_answers_has_its_own_verdict_and_no_header_tells_of_one(calibrated: Server) -> None:
    body = {**PROMPT, "n": 2, "temperature": 2, "seed": 3}
    _status, answer = ask(calibrated, "/v1/completions", body)
    assert all(0 < choice["edgepack"]["confidence"] < 1 for choice in answer["choices"])
    assert not [name for name in headers(calibrated, "/v1/completions", body) if name.startswith("x-edgepack")]


def test_an_answer_longer_than_any_that_was_measured_is_escalated(calibrated: Server) -> None:
    _status, answer = ask(calibrated, "/v1/completions", {**PROMPT, "max_tokens": 8})
    verdict = answer["choices"][0]["edgepack"]
    assert (verdict["route"], verdict["in_range"]) == ("escalate", False)


def test_a_forced_call_has_a_verdict_too(calibrated: Server) -> None:
    body = {**MESSAGES, "max_tokens": 200, "tools": [TOOL], "tool_choice": "required"}
    status, answer = ask(calibrated, "/v1/chat/completions", body)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["tool_calls"]
    assert answer["choices"][0]["edgepack"]["route"] == "escalate"


def test_the_model_tells_what_was_measured(calibrated: Server, server: Server) -> None:
    _status, told = ask(calibrated, "/v1/models")
    confidence = told["data"][0]["meta"]["confidence"]
    assert confidence["chat"] == {"method": "temperature", "threshold": 1.5, "lengths": [1, 4], "figures": {}}
    assert ask(server, "/v1/models")[1]["data"][0]["meta"]["confidence"] == {}


def test_a_calibration_of_another_file_is_dropped_with_a_line(calibrated_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.gguf"
    raw = bytearray(calibrated_model.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    running = start(path)
    try:
        _status, answer = ask(running, "/v1/completions", PROMPT)
        assert "edgepack" not in answer["choices"][0]
    finally:
        said = running.stop()
    assert "the confidence that this file states is dropped: it was fitted on contents" in said


def judged(confident: Confident, chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    async def stream() -> AsyncIterator[tuple[str, dict[str, Any]]]:
        for chunk in chunks:
            yield "", chunk

    async def work() -> list[dict[str, Any]]:
        return [value async for _name, value in confident.judged(stream())]

    return asyncio.run(work())


def test_an_answer_without_a_token_is_escalated() -> None:
    (chunk,) = judged(
        Confident({}, TEXT, chat=False), [{"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}]
    )
    assert chunk["choices"][0]["edgepack"] == {
        "confidence": None, "route": "escalate", "threshold": 0.0, "in_range": False,
    }  # fmt: skip
    assert verdict_headers(chunk) == [("X-Edgepack-Route", "escalate")]


def test_chunks_without_choices_pass_as_they_are() -> None:
    chunks = [{"usage": {"total_tokens": 3}}, {"choices": [], "prompt_progress": {"total": 1}}]
    assert judged(Confident({}, CHAT, chat=True), chunks) == chunks
