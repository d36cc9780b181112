"""What a user or a machine does wrong is one line: folders, pages, contexts, encoders, consoles, Ctrl-C, silence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from references.tiny_checkpoints import random_model, write_checkpoint
from references.tiny_encoders import EMBEDDERS, RANKERS

from edgepack import load
from edgepack.api.opening import OpenOptions, open_file
from edgepack.cli import execute as run
from edgepack.cli import heartbeat
from edgepack.edge.llama import cpu_threads, engines
from edgepack.edge.llama.cpu_threads import cpu_quota, free_cores, physical_cores
from edgepack.edge.llama.engine import StoppedError
from edgepack.edge.llama.engines import open_model
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.thread_pace import ThreadPace
from edgepack.errors import UnsupportedModelError
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model as open_checkpoint
from edgepack.export.plan import plan_export
from edgepack.progress import silent
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

ENGINES = ("llama-cpp-python", "xllamacpp")
GREEDY = ["--temp", "0", "--threads", "1", "-n", "4"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, books: Path) -> dict[str, Path]:
    """An embedder and two rerankers as GGUF."""
    folder = tmp_path_factory.mktemp("encoders")
    found = {}
    for tiny in (*EMBEDDERS, *RANKERS):
        if tiny.name in ("bert", "bert-ranker", "qwen-3-ranker"):
            write_checkpoint(random_model(tiny), folder / tiny.name, books)
            found[tiny.name] = folder / f"{tiny.name}.gguf"
            write_gguf(plan_export(open_checkpoint(folder / tiny.name), find_target("f32")), found[tiny.name])
    return found


def told(arguments: list[str], code: int, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line of an error; nothing of llama.cpp's beside it."""
    assert run(arguments) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("edgepack: error: ")
    return lines[0]


def test_a_checkpoint_is_told_from_a_folder(books: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "edgepack export" in told(["run", str(books), "--prompt", "x"], 2, capfd)
    assert "expected a GGUF or an .edgepack" in told(["run", str(tmp_path), "--prompt", "x"], 2, capfd)
    (tmp_path / "a.gguf").write_bytes(b"")
    assert "such as" in told(["embed", str(tmp_path), "x"], 2, capfd)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
        (b"<!DOCTYPE html><p>" + b"x" * 90, "HTML"),
    ],
)
def test_pointers_and_pages_are_named(
    content: bytes, word: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("m.gguf", "m.edgepack"):
        (tmp_path / name).write_bytes(content)
        assert word in told(["run", str(tmp_path / name), "--prompt", "x"], 6, capfd)
        assert word in told(["inspect", str(tmp_path / name)], 7, capfd)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ctx", ["1", "8", "100", "257", "2000"])
def test_any_context_answers_or_is_a_line(engine: str, ctx: str, tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = run(["run", str(tiny), "--prompt", "hello there", "--ctx", ctx, "--engine", engine, "--json", *GREEDY])
    assert code in (0, 2)
    out, err = capfd.readouterr()
    assert bool(out) == (code == 0)
    assert "Traceback" not in err
    assert ("the model was made for" in err) == (ctx == "2000")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_text_longer_than_an_embedders_context_is_a_line(
    engine: str, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = told(["embed", str(tiny), "--ctx", "8", "--engine", engine, "hello there, hello there"], 2, capfd)
    assert "embeddings take at most n_ubatch = 8" in line


@pytest.mark.parametrize("command", [["run", "--prompt", "x"], ["run"], ["bench", "-r", "1"]])
@pytest.mark.parametrize("name", ["bert", "bert-ranker"])
def test_an_encoder_says_nothing_and_that_is_a_line(
    command: list[str], name: str, encoders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    code = run([command[0], str(encoders[name]), *command[1:]])
    err = capfd.readouterr().err
    assert code in (4, 10)  # a chat fails at its template first
    assert "gives embeddings or scores" in err or "no chat template" in err


@pytest.mark.parametrize("name", ["bert-ranker", "qwen-3-ranker"])
def test_both_engines_rank_alike(name: str, encoders: dict[str, Path]) -> None:
    scores = []
    for engine in ENGINES:
        with load(encoders[name], engine=engine, threads=1, ctx=64) as model:  # type: ignore[arg-type]
            scores.append(model.rerank("once upon", ["a time", "the sea was calm", "x"]))
    assert len(set(scores[0])) == 3
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_embed_ranks_the_best_first(encoders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["embed", str(encoders["bert-ranker"]), "--rerank", "once", "--ctx", "64", "a time", "sea", "--json"]) == 0
    )
    results = json.loads(capfd.readouterr().out)["results"]
    assert results[0]["score"] >= results[1]["score"]
    assert {result["text"] for result in results} == {"a time", "sea"}


def test_what_is_no_cross_encoder_does_not_rank(tiny: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no cross-encoder"), load(tiny, threads=1) as model:
        model.rerank("a", ["b"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_is_a_question_where_there_is_a_template(
    engine: str, tiny_chat: Path, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def answer(path: Path, *more: str) -> str:
        assert run(["run", str(path), "--engine", engine, "--json", *GREEDY, *more]) == 0
        return str(json.loads(capfd.readouterr().out)["text"])

    asked = answer(tiny_chat, "--prompt", "hi")
    assert asked == answer(tiny_chat, "--prompt", "hi", "--chat")
    assert asked == answer(tiny_chat, "--raw", "--prompt", "<|user|>hi\n<|assistant|>", "--stop", "\n<|user|>")
    assert answer(tiny_chat, "--raw", "--prompt", "hi") == answer(tiny, "--prompt", "hi")


def test_raw_needs_a_prompt(tiny_chat: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "--raw" in told(["run", str(tiny_chat), "--raw"], 2, capfd)


def test_output_is_utf_8_whatever_the_consoles_encoding(tiny: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "edgepack", "run", str(tiny), "--prompt", "日本 ✓", *GREEDY]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8").startswith("日本 ✓")


class Slow:
    """An engine that loads until it is told to stop."""

    name = "llama-cpp-python"

    def open(self, _path: Path, _options: RuntimeOptions, abort: object) -> None:
        for _ in range(2000):
            if abort:
                raise StoppedError("stopped")
            time.sleep(0.01)
        raise AssertionError("Ctrl-C was lost")


def test_ctrl_c_while_loading_interrupts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "choose_engine", lambda _wish: Slow())
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        open_model(tiny, RuntimeOptions())


def test_long_work_without_a_terminal_prints_lines(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.02)
    with heartbeat.beating("export", watched=False) as beating:
        assert beating is not None
        time.sleep(0.2)
        with beating.stretch("encoding", 4_000_000, "B") as advance:
            advance(1_000_000)
            time.sleep(0.2)
    lines = capfd.readouterr().err.splitlines()
    assert "edgepack export: at work, 0 min" in lines
    assert "edgepack export: encoding: 1 of 4 MB (25 %), 0 min" in lines
    before = len(lines)
    time.sleep(0.1)
    assert not capfd.readouterr().err
    assert before


def test_a_chat_and_a_terminal_get_no_such_lines() -> None:
    for command, watched in (("run", False), ("serve", False), ("export", True), (None, False)):
        with heartbeat.beating(command, watched=watched) as beating:
            assert beating is None


def paced(seconds: dict[int, float], shares: dict[int, float], threads: int) -> ThreadPace:
    """A pace told of enough tokens, where a token takes so long and threads get so much of their processors."""
    clocks = {"wall": 0.0, "processor": 0.0}
    used = [threads]
    pace = ThreadPace(
        threads, used.append, clock=lambda: clocks["wall"], processor_clock=lambda: clocks["processor"]
    )  # fmt: skip
    for _ in range(60):
        clocks["wall"] += seconds[used[-1]]
        clocks["processor"] += seconds[used[-1]] * shares[used[-1]] * used[-1]
        pace.token()
    assert used[-1] == pace.threads
    return pace


def test_threads_that_wait_for_a_shared_core_are_taken_away() -> None:
    assert paced({2: 1.0, 1: 0.03}, {2: 0.7, 1: 1.0}, 2).threads == 1
    assert paced({8: 1.0, 4: 0.5, 2: 0.3, 1: 0.4}, {8: 0.5, 4: 0.6, 2: 0.7, 1: 1.0}, 8).threads == 2


def test_threads_that_compute_are_kept() -> None:
    assert paced({2: 0.5}, {2: 1.0}, 2).threads == 2


def test_fewer_threads_that_are_slower_are_given_back() -> None:
    assert paced({2: 0.5, 1: 0.9}, {2: 0.7, 1: 1.0}, 2).threads == 2


def test_a_container_has_the_cores_of_its_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    for text, quota in (("max 100000", None), ("150000 100000", 1.5), ("nonsense", None), ("1 0", None)):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert cpu_quota(tmp_path) == quota


def test_free_cores_are_physical_cores_less_what_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= free_cores() <= physical_cores()
    assert cpu_threads._free(8, 16, 0.0) == 8
    assert cpu_threads._free(8, 16, 8.0) == 4
    assert cpu_threads._free(2, 2, 1.0) == 1
    assert cpu_threads._free(2, 2, 0.1) == 2
    assert cpu_threads._free(1, 2, 5.0) == 1
    line = "cpu0 10 1 5 100 20 2 3 4 6 0"
    assert cpu_threads._busy_ticks(line) == 10 + 1 + 5 + 2 + 3 + 4


def test_a_context_beyond_the_model_is_told_and_cut_where_the_engine_cuts_it(tiny: Path) -> None:
    for engine, opened, told_of in (("llama-cpp-python", 600, "answers get worse"), ("xllamacpp", 512, "it has 512")):
        notes: list[str] = []
        _source, wish = open_file(tiny, OpenOptions(600, engine=engine), silent, notes.append)  # type: ignore[arg-type]
        assert wish.n_ctx == opened
        assert [told_of in note for note in notes] == [True]


def test_a_context_within_the_model_is_not_remarked_upon(tiny: Path) -> None:
    notes: list[str] = []
    assert open_file(tiny, OpenOptions(512, engine="xllamacpp"), silent, notes.append)[1].n_ctx == 512
    assert not notes
