"""`edgepack calibrate` from a text to a verdict: what it measures, where it puts it, who reads it, what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import edgepack
from edgepack.cli import execute
from edgepack.edge.confidence.binding import contents_digest
from edgepack.edge.confidence.record import read_record
from edgepack.edge.fidelity.certificate import MEMBER
from edgepack.edge.fidelity.certificate_file import with_metadata
from edgepack.edge.llama.engines import open_model
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.file_digest import file_sha256
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.gguf.types import string
from edgepack.packaging.archive import open_archive
from edgepack.packaging.trust.policy import ANYONE
from edgepack.pipeline.confidence.cloze import cloze_questions

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "data/own-words.txt"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} The{% endif %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "books.gguf"
    assert execute(["export", str(ROOT / "data/books-llama-6m"), "--target", "gguf-q8", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def calibrated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command printed when it made an archive and a page; with `folder`."""
    folder = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(folder / "cache"))
        result = edgepack.calibrate(
            model, output=folder / "c.edgepack", from_text=TEXT, items=260, escalate=0.3, threads=1
        )
    (folder / "page.html").write_text(result.html(), encoding="utf-8")
    return {**result.json(), "folder": folder}


def questions(folder: Path, count: int, **more: Any) -> Path:
    path = folder / "questions.jsonl"
    lines = [{"prompt": f"The {number} th man saw the", "answer": "man", **more} for number in range(count)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_a_file_is_better_calibrated_than_it_was(calibrated: dict[str, Any]) -> None:
    assert calibrated["questions"] == 260
    for form in ("choice", "text"):
        told = calibrated["forms"][form]
        before, after = told["methods"]["raw"], told["methods"][told["method"]]
        assert after["ece"] < before["ece"]
        assert after["ece"] < after["ece_by_chance"] + 0.05
        assert told["fitted_on"] + told["judged_on"] <= 260
        assert 0.5 < told["router"]["given"] < 0.9
    assert calibrated["left_out"] == {}


def test_the_page_shows_both_diagrams_and_needs_nothing_else(calibrated: dict[str, Any]) -> None:
    page = (calibrated["folder"] / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert page.count("reliability before calibration") == 2
    assert "http" not in page
    assert f"{calibrated['forms']['text']['methods']['raw']['ece']:.4f}" in page


def test_the_archive_holds_the_calibration_of_the_very_contents(calibrated: dict[str, Any], model: Path) -> None:
    with open_archive(calibrated["folder"] / "c.edgepack", ANYONE) as archive:
        header = archive.gguf_header()
    found = read_record(header.metadata)
    assert found.digest == contents_digest(model, read_header(model)) == calibrated["digest"]
    assert set(found.fitted) == {"text", "choice"}
    assert found.fitted["text"].threshold == calibrated["forms"]["text"]["threshold"]
    rest = {key: value for key, value in header.metadata.items() if not key.startswith(keys.CONFIDENCE)}
    assert rest == dict(read_header(model).metadata)


@pytest.mark.parametrize("engine", ["llama-cpp-python", "xllamacpp"])
def test_run_says_how_sure_an_answer_is_whatever_the_engine(
    engine: str, calibrated: dict[str, Any], told: Callable[..., tuple[str, str]]
) -> None:
    archive = calibrated["folder"] / "c.edgepack"
    asked = [
        "run",
        archive,
        "--prompt",
        "The old man looked at",
        "-n",
        2,
        "--temp",
        0,
        "--threads",
        1,
        "--engine",
        engine,
    ]
    out, _err = told(0, *asked, "--confidence", "--json")
    verdict = json.loads(out)
    with edgepack.load(archive, threads=1, engine="llama-cpp-python") as opened:
        sampling = edgepack.SamplingOptions(temperature=0, chances=10)
        completion = opened.complete("The old man looked at", max_tokens=2, sampling=sampling)
        expected = opened.verdict(completion, chat=False)
        with pytest.raises(edgepack.errors.UsageError, match="expected a completion of SamplingOptions"):
            opened.verdict(opened.complete("a", max_tokens=1), chat=False)
    assert verdict["confidence"] == pytest.approx(expected.confidence, abs=1e-3)
    assert (verdict["route"], verdict["threshold"]) == (expected.route, expected.threshold)
    _out, err = told(0, *asked, "--confidence")
    assert err.splitlines()[-1] == str(expected)
    out, err = told(0, *asked, "--json")
    assert "confidence" not in out + err


def test_a_calibrated_file_is_calibrated_again_without_losing_its_other_forms(
    calibrated: dict[str, Any], tmp_path: Path, told: Callable[..., tuple[str, str]]
) -> None:
    """Questions without choices leave the choices' calibration as it is."""
    archive, out = calibrated["folder"] / "c.edgepack", tmp_path / "again.gguf"
    made = cloze_questions(TEXT.read_text(encoding="utf-8"), 140, 1, "x")
    lines = [{"prompt": one.prompt, "answer": one.answer} for one in made]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    told(0, "calibrate", archive, "--questions", path, "-o", out, "--max-tokens", 2, "--threads", 1)
    with open_archive(archive, ANYONE) as before:
        was = read_record(before.gguf_header().metadata)
    now = read_record(read_header(out).metadata)
    assert now.digest == was.digest
    assert now.fitted["choice"] == was.fitted["choice"]
    assert now.fitted["text"] != was.fitted["text"]


def test_a_certificate_goes_on_holding(model: Path, tmp_path: Path, told: Callable[..., tuple[str, str]]) -> None:
    certified, out = tmp_path / "a.edgepack", tmp_path / "b.edgepack"
    scoring = ["--text", TEXT, "--ctx", 64, "--chunks", 2, "--threads", 1, "--no-floor", "--stored-tokens", 64]
    told(0, "certify", model, "--reference", model, "-o", certified, *scoring)
    told(0, "calibrate", certified, "--from-text", TEXT, "--items", 140, "-o", out, "--threads", 1)
    printed, _err = told(0, "validate", out, "--json", "--threads", 1)
    assert json.loads(printed)["passed"] is True
    with open_archive(out, ANYONE) as archive:
        assert MEMBER in [member.name for member in archive.members]


def test_without_an_output_nothing_is_written(
    model: Path, tmp_path: Path, told: Callable[..., tuple[str, str]]
) -> None:
    digest, before = file_sha256(model), set(model.parent.iterdir())
    out, _err = told(
        0, "calibrate", model, "--from-text", TEXT, "--items", 120, "--engine", "xllamacpp", "--threads", 1, "--json"
    )
    found = json.loads(out)
    assert found["output"] is None
    assert list(found["forms"]) == ["text"]
    assert "llama-cpp-python" in found["left_out"]["choice"]
    assert file_sha256(model) == digest
    assert set(model.parent.iterdir()) == before


def test_chats_are_asked_through_the_template(
    model: Path, tmp_path: Path, told: Callable[..., tuple[str, str]]
) -> None:
    """A model that always says what the template makes it say is right about half of the questions."""
    chatty, out = tmp_path / "chatty.gguf", tmp_path / "out.gguf"
    with_metadata(model, {keys.CHAT_TEMPLATE: string(TEMPLATE)}, chatty)
    with edgepack.load(chatty, ctx=128, threads=1) as opened:
        said = [opened.chat(f"Tell of {n}.", max_tokens=4, temperature=0).text.split()[0] for n in range(120)]
    path = tmp_path / "q.jsonl"
    lines = [{"prompt": f"Tell of {n}.", "answer": said[n] if n % 2 else "zebra"} for n in range(120)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    told(0, "calibrate", chatty, "--questions", path, "--chat", "--max-tokens", 4, "-o", out, "--threads", 1)
    (fitted,) = read_record(read_header(out).metadata).fitted.values()
    assert fitted.form == "chat"
    assert fitted.figures["accuracy"] == pytest.approx(0.5, abs=0.15)
    printed, _err = told(0, "run", out, "--prompt", "Tell of 3.", "-n", 4, "--confidence", "--json", "--threads", 1)
    assert 0 < json.loads(printed)["confidence"] < 1
    _out, err = told(2, "run", out, "--prompt", "a", "--raw", "--confidence")
    assert "its confidence is of chat, expected text" in err


def test_what_cannot_be_calibrated_is_one_line(
    model: Path, tmp_path: Path, told: Callable[..., tuple[str, str]]
) -> None:
    wrong = questions(tmp_path, 120, answer="zebra")
    cases: list[tuple[int, list[object], str]] = [
        (
            12,
            ["--questions", wrong, "--max-tokens", 3],
            "expected at least 10 right and 10 wrong answers, got 0 and 120",
        ),
        (2, ["--questions", wrong, "--chat"], "chat template"),
        (
            2,
            ["--questions", wrong, "--ctx", 40, "--max-tokens", 39],
            "questions.jsonl, line 1: question and answer need",
        ),
        (2, [], "expected a file of them or a text"),
        (2, ["--questions", wrong, "--from-text", TEXT], "expected a file of them or a text"),
        (2, ["--from-text", TEXT, "--chat"], "chat: expected a file of questions"),
        (2, ["--from-text", TEXT, "--accuracy", 0.5, "--escalate", 0.5], "expected an accuracy or a share"),
        (12, ["--from-text", TEXT, "--items", 99], "expected at least 100 questions with an answer, got 99"),
        (1, ["--from-text", TEXT, "--items", 140, "--accuracy", 0.9999], "no threshold reaches it"),
        (2, ["--questions", tmp_path / "absent"], "cannot be read"),
        (2, ["--from-text", TEXT, "-o", model, "--force"], "input"),
    ]
    for code, arguments, said in cases:
        code = 10 if said == "chat template" else code
        _out, err = told(
            code, "calibrate", model, *arguments, *([] if "-o" in arguments else ["-o", tmp_path / "x.gguf"])
        )
        errors = [line for line in err.splitlines() if "error: " in line]
        assert len(errors) == 1, err
        assert said in errors[0]
        assert {path.name for path in tmp_path.iterdir()} <= {"questions.jsonl", "cache"}


def test_run_refuses_a_confidence_that_there_is_none_of(
    model: Path, calibrated: dict[str, Any], told: Callable[..., tuple[str, str]]
) -> None:
    _out, err = told(2, "run", model, "--prompt", "a", "--confidence")
    assert "it says nothing of its confidence: measure it with edgepack calibrate" in err
    archive = calibrated["folder"] / "c.edgepack"
    _out, err = told(2, "run", archive, "--confidence", "--template", "chatml")
    assert "--confidence: expected --prompt" in err
    _out, err = told(2, "run", archive, "--prompt", "a", "--chat", "--template", "chatml", "--confidence")
    assert "expected chat: measure it with edgepack calibrate, with --chat" in err


def test_an_answer_of_a_changed_file_has_no_verdict(
    calibrated: dict[str, Any], tmp_path: Path, told: Callable[..., tuple[str, str]]
) -> None:
    out = tmp_path / "m.gguf"
    told(0, "unpack", calibrated["folder"] / "c.edgepack", "-o", out)
    told(0, "run", out, "--prompt", "a", "-n", 1, "--confidence", "--threads", 1)
    raw = bytearray(out.read_bytes())
    raw[-1] ^= 1
    out.write_bytes(raw)
    _out, err = told(2, "run", out, "--prompt", "a", "-n", 1, "--confidence")
    assert "is dropped: it was fitted on contents" in err


def test_a_model_chooses_as_its_calibration_was_asked(calibrated: dict[str, Any], model: Path) -> None:
    question = cloze_questions(TEXT.read_text(encoding="utf-8"), 1, 0, "x")[0]
    with edgepack.load(calibrated["folder"] / "c.edgepack", threads=1, engine="llama-cpp-python") as opened:
        found = opened.choose(question.prompt, question.choices)
        with pytest.raises(edgepack.errors.UsageError, match="expected at least two texts"):
            opened.choose("a", ["b"])
    with open_model(model, RuntimeOptions(n_ctx=512, threads=1)) as runtime:
        scores = [_log_p(runtime, question.prompt, f" {choice}") for choice in question.choices]
    assert found.index == max(range(4), key=scores.__getitem__)
    assert found.share == pytest.approx(math.exp(max(scores)) / sum(map(math.exp, scores)), rel=1e-2)
    assert found.verdict is not None
    assert found.verdict.threshold == calibrated["forms"]["choice"]["threshold"]
    with edgepack.load(model, threads=1, engine="llama-cpp-python") as opened:
        assert opened.choose(question.prompt, question.choices).verdict is None


def _log_p(runtime: Any, prompt: str, ending: str) -> float:
    """log p(ending | prompt) of logits of the whole text at once."""
    ids, first = runtime.tokenize(prompt + ending), len(runtime.tokenize(prompt))
    logits = runtime.logits(ids, first - 1)[:-1].astype(float)
    shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(shares[np.arange(len(shares)), ids[first:]].sum())
