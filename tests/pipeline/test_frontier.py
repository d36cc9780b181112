"""A study keeps what it has measured, stops and goes on anywhere, and its page needs nothing but itself."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import edgepack
from edgepack.cli import execute
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.errors import CheckFailedError, IntegrityError, UsageError
from edgepack.pipeline.frontier import ledger as ledgers
from edgepack.pipeline.frontier import study as studies
from edgepack.pipeline.frontier import telling
from edgepack.pipeline.frontier.catalogue import TYPES, catalogue, chosen, plain, stock, wire, with_importance
from edgepack.pipeline.frontier.forecast import Forecast
from edgepack.pipeline.frontier.found import Frontier
from edgepack.pipeline.frontier.ledger import Ledger, model_digest
from edgepack.pipeline.frontier.making import FileMaker, MadeFile
from edgepack.pipeline.frontier.points import DeviceFit, Point, Spec, TextFigures, point_from_json
from edgepack.pipeline.frontier.report import lines, write_report
from edgepack.pipeline.frontier.request import StudyRequest
from edgepack.pipeline.frontier.study import Study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPECS = (
    Spec("plain/Q8_0", "plain", {"target": "gguf-q8"}),
    Spec("plain/Q4_K_M", "plain", {"target": "gguf-q4km"}),
    Spec("broken/never", "broken", {"target": "gguf-q4km"}, size_of=("file_bytes", "plain/Q4_K_M")),
)


class Copies(FileMaker):
    """Copies files that lie there already: a study, and no quantising."""

    source: Path
    made: list[str]
    stop_at = ""

    def export(self, spec: Spec, limit: int | None) -> MadeFile:
        type(self).made.append(spec.id)
        if spec.id == type(self).stop_at:
            raise KeyboardInterrupt
        if spec.family == "broken":
            raise UsageError(f"expected more than {limit} bytes")
        shutil.copy(type(self).source / f"{spec.label}.gguf", self.gguf_of(spec))
        return MadeFile(self.gguf_of(spec), None, 0.5)


@pytest.fixture(scope="module")
def files(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("types")
    for spec in SPECS[:2]:
        edgepack.export(books, target=spec.options["target"], output=folder / f"{spec.label}.gguf", threads=1)
    for name in ("one.txt", "two.txt", "calibration.txt"):
        (folder / name).write_text(f"It was a dark {name}, and nobody came to the door of the old house. " * 12)
    return folder


@pytest.fixture
def maker(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Copies]]:
    foretold = Forecast({"original": 1.0}, {s.id: 1.0 for s in SPECS})
    for module in (studies, telling):
        monkeypatch.setattr(module, "forecast", lambda *_: foretold)
    Copies.source, Copies.made, Copies.stop_at = files, [], ""
    return Copies


def request(books: Path, files: Path, output: Path, **changes: Any) -> StudyRequest:
    scoring = ScoringOptions(ctx=32, max_chunks=2, threads=1)
    texts = (files / "one.txt", files / "two.txt")
    plan = StudyRequest(books, files / "calibration.txt", texts, output, scoring=scoring, devices=("gtx-1660",))
    return replace(plan, **changes)


def study(plan: StudyRequest, maker: type[Copies]) -> Study:
    return Study(plan, SPECS, maker, write_report)


def test_a_study_measures_every_file_on_every_text_and_tells_what_failed(
    books: Path, files: Path, maker: type[Copies], tmp_path: Path
) -> None:
    told: list[str] = []
    found = study(request(books, files, tmp_path / "out", tell=told.append), maker).run()
    q8, q4, broken = found.points
    assert set(q8.texts) == set(q4.texts) == {"one.txt", "two.txt"}
    assert found.mean_kl(q8) < found.mean_kl(q4)
    assert q8.file_bytes == (files / "Q8_0.gguf").stat().st_size > q8.shipped_bytes
    live = edgepack.validate(
        files / "Q4_K_M.gguf", books, text=files / "one.txt", scoring=ScoringOptions(ctx=32, max_chunks=2, threads=1)
    ).validation.statistics
    assert q4.texts["one.txt"].mean_kl == pytest.approx(live.divergence.mean, rel=1e-4)
    assert q4.texts["one.txt"].top1 == live.agreement.mean
    assert broken.failed == f"expected more than {q4.file_bytes} bytes"
    assert told[0].startswith("3 points, about")
    assert "broken/never: not made" in told[-1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "frontier.html", "frontier.json", "frontier.svg",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing of the work is left
    assert any(line.startswith("broken/never") for line in lines(found))


def test_an_interrupted_study_goes_on_at_the_file_where_it_was(
    books: Path, files: Path, maker: type[Copies], tmp_path: Path
) -> None:
    plan = request(books, files, tmp_path / "out")
    maker.stop_at = "plain/Q4_K_M"
    with pytest.raises(KeyboardInterrupt):
        study(plan, maker).run()
    assert not (tmp_path / "out").exists()
    maker.stop_at, maker.made = "", []
    found = study(replace(plan, resume=True), maker).run()
    assert maker.made == ["plain/Q4_K_M", "broken/never"]
    assert [point.id for point in found.points] == [spec.id for spec in SPECS]


def test_a_file_that_was_made_is_not_made_again_when_scoring_was_interrupted(
    books: Path, files: Path, maker: type[Copies], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, measured = request(books, files, tmp_path / "out"), []
    measure = studies.KeptOriginal.measure

    def stopping(self: studies.KeptOriginal, gguf: Path, name: str) -> TextFigures:
        if len(measured) == 1:
            measured.append("stopped")
            raise KeyboardInterrupt
        measured.append(name)
        return measure(self, gguf, name)

    monkeypatch.setattr(studies.KeptOriginal, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        study(plan, maker).run()
    study(replace(plan, resume=True), maker).run()
    assert maker.made == ["plain/Q8_0", "plain/Q4_K_M", "broken/never"]
    assert measured == ["one.txt", "stopped", "two.txt", "one.txt", "two.txt"]


def test_a_finished_study_gets_further_points_and_no_other_models(
    books: Path, files: Path, maker: type[Copies], tmp_path: Path
) -> None:
    plan = request(books, files, tmp_path / "out", keep_files=True)
    Study(plan, SPECS[:1], maker, write_report).run()
    assert sorted(path.name for path in (tmp_path / "out/files").iterdir()) == [
        "plain-at-Q8_0.edgepack", "plain-at-Q8_0.gguf",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="empty or not there"):
        Study(plan, SPECS[:1], maker).run()
    found = Study(replace(plan, resume=True), SPECS[:2], maker, write_report).run()
    assert maker.made == ["plain/Q8_0", "plain/Q4_K_M"]
    assert json.loads((tmp_path / "out/frontier.json").read_text())["points"] == found.as_json()["points"]
    with pytest.raises(UsageError, match="another model, text or setting"):
        study(replace(plan, resume=True, texts=plan.texts[:1]), maker).run()


def test_what_an_interrupted_study_left_is_not_taken_for_another_ones(tmp_path: Path) -> None:
    Ledger(tmp_path / "out", {"model": "a", "text": "b"}, resume=False)
    Ledger(tmp_path / "out", {"model": "a", "text": "b"}, resume=True)
    with pytest.raises(UsageError, match="another text"):
        Ledger(tmp_path / "out", {"model": "a", "text": "c"}, resume=True)
    assert Ledger(tmp_path / "out", {"model": "a", "text": "c"}, resume=False).read("x") is None


def test_a_study_of_which_nothing_can_be_made_is_an_error_and_leaves_nothing(
    books: Path, files: Path, maker: type[Copies], tmp_path: Path
) -> None:
    with pytest.raises(CheckFailedError, match="broken/first: expected more"):
        Study(request(books, files, tmp_path / "out"), [Spec("broken/first", "broken")], maker).run()
    assert not (tmp_path / "out").exists()


def figures(kl: float, top1: float, low: float) -> TextFigures:
    return TextFigures(100, 32, kl, (kl / 2, kl * 2), top1, (low, 1.0), 1.0, (0.9, 1.1), 1.0)


def point(name: str, size: int, shipped: int, kl: float, top1: float, budget: int = 500) -> Point:
    device = DeviceFit(size <= budget, 2048, 10, budget, None)
    return Point(name, name.partition("/")[0], size, shipped, "planes", 800, texts={"<t>": figures(kl, top1, top1 - 0.02)},
                 devices={"gtx-1660": device})  # fmt: skip


FOUND = Frontier(
    "m", {}, {"<t>": ("0" * 64, 100, 32)},
    (point("plain/Q8_0", 800, 700, 0.001, 0.99), point("importance/Q4_K_M", 450, 400, 0.02, 0.94),
     point("wire-q8/Q4_K_M", 800, 390, 0.004, 0.96), Point("refined/Q2_K", "refined", failed="no <such> thing")),
    0.95, 1.0,
)  # fmt: skip


def test_the_smallest_that_keeps_the_goal_the_front_and_the_devices_best_are_found() -> None:
    assert FOUND.smallest("shipped_bytes") == FOUND.points[2]
    assert FOUND.smallest("file_bytes").id == "plain/Q8_0"  # of equal files the more faithful
    assert FOUND.front("shipped_bytes") == {"plain/Q8_0", "wire-q8/Q4_K_M"}
    assert FOUND.front("file_bytes") == {"plain/Q8_0", "importance/Q4_K_M"}
    assert FOUND.best_on("gtx-1660").id == "importance/Q4_K_M"
    assert not FOUND.keeps(FOUND.points[2], surely=True)
    assert FOUND.points[0].file_bits == 8.0


def test_page_and_picture_stand_by_themselves_and_spell_what_is_not_theirs(tmp_path: Path) -> None:
    write_report(FOUND, tmp_path)
    page = (tmp_path / "frontier.html").read_text()
    assert "&lt;t&gt;" in page
    assert "<t>" not in page
    assert "no &lt;such&gt; thing" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    picture = ET.parse(tmp_path / "frontier.svg").getroot()
    assert len(picture.findall(".//{*}circle")) == 2 * 3 + 3
    assert len(picture.findall(".//{*}line[@class='budget']")) == 1


def test_a_point_comes_back_from_json_and_nothing_else_does() -> None:
    for each in FOUND.points:
        assert point_from_json(json.loads(json.dumps(each.as_json())), "here") == each
    plain_form = FOUND.points[0].as_json()
    for change in ({"file_bytes": -1}, {"texts": {"a": {}}}, {"devices": 3}, {"id": None}, {"weights": "many"}):
        with pytest.raises(IntegrityError, match="here"):
            point_from_json({**plain_form, **change}, "here")
    with pytest.raises(IntegrityError, match="here"):
        point_from_json([], "here")


def test_expressions_choose_points_with_what_they_stand_on() -> None:
    every = catalogue()
    assert len({spec.id for spec in every}) == len({spec.slug for spec in every}) == len(every)
    assert chosen(every, "") == every
    assert [spec.id for spec in chosen(every, "wire-q4k/Q4_K_M")] == ["importance/Q4_K_M", "wire-q4k/Q4_K_M"]
    with pytest.raises(UsageError, match="families are plain, importance"):
        chosen(every, "nothing")
    with pytest.raises(UsageError, match="not an expression"):
        chosen(every, "(")


def test_every_type_has_its_stock_file_and_every_wire_a_size() -> None:
    for label in TYPES:
        assert stock(label) in (plain(label), with_importance(label))
    assert wire("q8", "Q8_0").size_of == ("shipped_bytes", "plain/Q8_0")
    places = {spec.id: at for at, spec in enumerate(catalogue())}
    assert all(places[spec.size_of[1]] < places[spec.id] for spec in catalogue() if spec.size_of)


def test_the_command_foretells_runs_and_goes_on(
    stories: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way with the smallest real model: importance, the wire, and the budgets."""
    text = str(files / "one.txt")
    line = ["frontier", str(stories), "--calibration", str(files / "calibration.txt"), "--text", text, "-o",
            str(tmp_path / "out"), "--points", "wire-q8/Q4_K_M", "--sequences", "2", "--length", "32", "--ctx", "32",
            "--chunks", "2", "--threads", "1", "--json"]  # fmt: skip
    assert execute([*line, "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["points"]) == {"importance/Q4_K_M", "wire-q8/Q4_K_M"}
    assert set(told["once"]) == {"original", "importance", "curvature"}
    assert told["seconds"] == pytest.approx(sum(told["points"].values()) + sum(told["once"].values()))
    assert not list(tmp_path.iterdir())
    assert execute(line) == 0
    found = json.loads(capsys.readouterr().out)
    stock_file, ours = found["points"]
    assert 0.95 * stock_file["shipped_bytes"] < ours["shipped_bytes"] <= ours["limit"] == stock_file["shipped_bytes"]
    assert ours["texts"]["one.txt"]["mean_kl"] < stock_file["texts"]["one.txt"]["mean_kl"]
    assert set(ours["devices"]) == {"gtx-1660", "rtx-3060", "laptop-8gb"}
    assert found["devices"]["laptop-8gb"] == "wire-q8/Q4_K_M"
    assert execute([*line, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == found["points"]


def test_equal_contents_are_the_same_model_wherever_they_lie_and_others_are_not(
    books: Path, files: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(books, tmp_path / "elsewhere", copy_function=shutil.copy)
    assert model_digest(copied) == model_digest(books)
    weights = next(copied.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    assert model_digest(copied) != model_digest(books)
    renamed = shutil.copy(files / "Q8_0.gguf", tmp_path / "other.gguf")
    assert model_digest(renamed) == model_digest(files / "Q8_0.gguf")


def test_what_is_read_of_a_large_file_covers_both_ends_and_lies_inside() -> None:
    for size in (0, 5, 1 << 16, (64 << 20) + 1, 5 << 30):
        pieces = list(ledgers._pieces(size))
        assert all(start >= 0 and start + length <= size for start, length in pieces)
        if size:
            assert pieces[0][0] == 0
            assert pieces[-1][0] + pieces[-1][1] == size
        assert sum(length for _, length in pieces) <= max(64 << 20, 16 << 20)
    assert sum(length for _, length in ledgers._pieces(64 << 20)) == 64 << 20
