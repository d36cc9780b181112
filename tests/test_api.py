"""The Python API: typed, frozen, loaded when it is asked for, with the errors of the one tree."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import api_document
import numpy as np
import pytest

import edgepack
from edgepack import errors
from edgepack.cli import execute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.api.model import Model

FUNCTIONS = [
    name
    for name in edgepack.__all__
    if callable(getattr(edgepack, name)) and not inspect.isclass(getattr(edgepack, name))
]


@pytest.fixture(scope="module")
def gguf(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as Q5_K_M."""
    path = tmp_path_factory.mktemp("api") / "m.gguf"
    assert execute(["export", str(books), "--target", "gguf-q5km", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def model(gguf: Path) -> Iterator[Model]:
    """The same, opened."""
    with edgepack.load(gguf, ctx=256, device="cpu", threads=1, template="chatml") as opened:
        yield opened


def run_python(script: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


# ---------------------------------------------------------------- the module


def test_every_public_name_is_there_and_listed() -> None:
    assert set(edgepack.__all__) == {*edgepack._NAMES, "__version__"}
    for name in edgepack.__all__:
        assert getattr(edgepack, name) is not None
        assert name in dir(edgepack)
    with pytest.raises(AttributeError, match="no attribute 'pakc'"):
        edgepack.pakc  # type: ignore[attr-defined]  # noqa: B018


def test_what_type_checkers_see_is_what_is_loaded() -> None:
    source = Path(edgepack.__file__).read_text(encoding="utf-8")
    seen = source.split("if TYPE_CHECKING:")[1].split("\n\n#")[0]
    for name, module in edgepack._NAMES.items():
        line = f"from edgepack.{module} import " if module else "from edgepack import "
        assert any(
            candidate.strip().startswith(line) and name in candidate.split(" import ")[1].split(", ")
            for candidate in seen.splitlines()
        ), name


def test_looking_around_imports_nothing_heavy() -> None:
    script = "import edgepack, sys; dir(edgepack); edgepack.errors; edgepack.progress; print(*sys.modules)"
    loaded = set(run_python(script).split())
    assert not loaded & {"numpy", "torch", "gguf", "llama_cpp", "zstandard", "click", "inspect"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_typed_without_any_and_without_open_ends(name: str) -> None:
    signature = inspect.signature(getattr(edgepack, name))
    assert "Any" not in str(signature)
    for parameter in signature.parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), parameter
        assert parameter.annotation is not parameter.empty
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("dotted", ["api.model.Model", *api_document.RESULTS])
def test_methods_of_what_is_given_back_are_typed_without_any(dotted: str) -> None:
    for name, member in vars(api_document._by_name(dotted)).items():
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function) and not name.startswith("_"):
            signature = inspect.signature(function)
            assert "Any" not in str(signature), f"{name}{signature}"
            assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("dotted", api_document.RESULTS)
def test_results_are_frozen(dotted: str) -> None:
    kind = api_document._by_name(dotted)
    if dataclasses.is_dataclass(kind):
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_a_part_that_is_also_a_function_is_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing `edgepack.export.config` hangs the folder into the package; calling it must still export."""
    monkeypatch.setattr(edgepack, "_FUNCTIONS_TOO", frozenset({"export"}))
    monkeypatch.setattr(edgepack, "_defined", lambda name: lambda value, *, more=0: (name, value, more))
    part = sys.modules["edgepack.export"] if "edgepack.export" in sys.modules else __import__("edgepack.export").export
    before = part.__class__
    try:
        edgepack.export = part  # what the import system does
        assert isinstance(edgepack.export, ModuleType)
        assert edgepack.export("model/", more=2) == ("export", "model/", 2)
        from edgepack.export import config

        assert edgepack.export.config is config
        assert list(inspect.signature(edgepack.export).parameters) == ["value", "more"]
    finally:
        part.__class__ = before


# ---------------------------------------------------------------- archives


def test_the_command_line_and_the_api_give_the_same(
    gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = edgepack.pack(gguf, tmp_path / "a.edgepack")
    assert execute(["pack", str(gguf), "-o", str(tmp_path / "b.edgepack"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (tmp_path / "a.edgepack").read_bytes() == (tmp_path / "b.edgepack").read_bytes()
    assert (told["bytes"], told["sha256"]) == (packed.bytes, packed.sha256)
    for command, value in (("verify", edgepack.verify), ("inspect", edgepack.inspect)):
        assert execute([command, str(tmp_path / "a.edgepack"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == value(tmp_path / "a.edgepack").json()


def test_paths_may_be_texts_and_outputs_have_default_names(gguf: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf.read_bytes())
    packed = edgepack.pack(str(file))
    assert packed.output == tmp_path / "model.edgepack"
    with pytest.raises(errors.UsageError, match="is there already"):
        edgepack.unpack(packed.output)
    file.unlink()
    assert edgepack.unpack(str(packed.output)).output == file


def test_an_archive_is_restored_from_a_stream(gguf: Path, tmp_path: Path) -> None:
    packed = edgepack.pack(gguf, tmp_path / "a.edgepack")
    with packed.output.open("rb") as stream:
        assert edgepack.unpack(stream, tmp_path / "out.gguf").sha256 == packed.sha256


def test_what_is_wrong_is_a_result_of_verify(gguf: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "a.edgepack"
    content = bytearray(edgepack.pack(gguf, damaged).output.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    found = edgepack.verify(damaged)
    assert not found.ok
    assert found.problems[0].where
    with pytest.raises(errors.IntegrityError):
        edgepack.unpack(damaged, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


# ---------------------------------------------------------------- models


def test_a_stream_gives_the_text_of_the_whole(model: Model) -> None:
    whole = model.complete("It was a dark night", max_tokens=12, temperature=0)
    stream = model.complete("It was a dark night", max_tokens=12, temperature=0, stream=True)
    assert "".join(stream) == whole.text == stream.result.text
    assert (stream.result.tokens, stream.result.prompt_tokens) == (whole.tokens, whole.prompt_tokens)


def test_a_stream_that_is_closed_early_tells_what_came(model: Model) -> None:
    stream = model.complete("It was", max_tokens=50, temperature=0, stream=True)
    first = next(stream)
    stream.close()
    assert stream.result.text == first
    assert list(stream) == []


def test_what_is_said_beside_sampling_counts(model: Model) -> None:
    sampling = edgepack.SamplingOptions(temperature=5.0, seed=1)
    greedy = model.complete("It was", max_tokens=8, temperature=0)
    assert model.complete("It was", max_tokens=8, temperature=0, sampling=sampling) == dataclasses.replace(
        greedy,
        first_token_seconds=pytest.approx(greedy.first_token_seconds, abs=60),
        tokens_per_second=pytest.approx(greedy.tokens_per_second, abs=1e9),
    )
    wild = [model.complete("It was", max_tokens=8, sampling=sampling, seed=seed).text for seed in (1, 1, 2)]
    assert wild[0] == wild[1] != wild[2]


def test_a_chat_is_the_template_completed(model: Model) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    answer = model.chat(messages, max_tokens=8, temperature=0)
    assert "".join(model.chat(messages, max_tokens=8, temperature=0, stream=True)) == answer.text
    talk = model.conversation(edgepack.SamplingOptions(temperature=0), system="Be brief.", max_tokens=8)
    assert "".join(talk.answer("Who?")) == answer.text
    assert messages[0]["role"] == "system", "what was passed in is not changed"


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": "hello"}, {"role": "user", "content": 3}])
def test_a_message_without_role_or_content_is_refused(model: Model, message: dict[str, str]) -> None:
    with pytest.raises(errors.UsageError, match="role and content"):
        model.chat([message])


def test_a_conversation_beyond_the_context_is_refused(model: Model) -> None:
    with pytest.raises(errors.UsageError, match="the context holds 256"):
        model.chat("word " * 400)


def test_embeddings_do_not_disturb_text(model: Model) -> None:
    before = model.complete("It was", max_tokens=6, temperature=0).text
    several = model.embed(["a dark night", "a bright day"])
    assert several.shape == (2, several.shape[1])
    assert several.dtype == np.float32
    one = model.embed("a bright day", normalize=True)
    assert np.allclose(one[0], several[1] / np.linalg.norm(several[1]), atol=1e-6)
    assert model.complete("It was", max_tokens=6, temperature=0).text == before


def test_a_closed_model_may_be_closed_again(gguf: Path) -> None:
    opened = edgepack.load(gguf, ctx=64, device="cpu", threads=1)
    opened.close()
    opened.close()


def test_a_model_without_a_template_says_so_when_it_is_asked_to_chat(gguf: Path) -> None:
    with edgepack.load(gguf, ctx=64, device="cpu", threads=1) as opened:
        assert not opened.can_chat
        with pytest.raises(errors.TemplateError, match="has no chat template"):
            opened.chat("hello")


# ---------------------------------------------------------------- fidelity and fit


def test_a_validation_has_figures_a_page_and_the_commands_json(
    gguf: Path, books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "t.txt"
    text.write_text((books.parent / "own-words.txt").read_text(encoding="utf-8")[:20_000])
    scoring = edgepack.ScoringOptions(floor=False, greedy=0)
    found = edgepack.validate(gguf, books, text=text, ctx=64, chunks=3, scoring=scoring, max_kl=1e-9)
    low, high = found.top1_interval
    assert low <= found.top1_agreement <= high
    assert not found.passed
    assert [gate.name for gate in found.failed_gates] == ["max-kl"]
    assert found.candidate.findings is not None, "a gate failed, so causes were looked for"
    assert found.html().lower().startswith("<!doctype html>")
    arguments = ["--text", str(text), "--ctx", "64", "--chunks", "3", "--no-floor", "--greedy", "0", "--max-kl", "1e-9"]
    assert execute(["validate", str(gguf), "--reference", str(books), *arguments, "--no-suggest", "--json"]) == 1
    told, expected = json.loads(capsys.readouterr().out), json.loads(json.dumps(found.json()))
    for timing in ("seconds", "tokens_per_second"):
        del told[timing], expected[timing]
    assert told == expected


def test_gates_are_checked_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="agreement gate"):
        edgepack.validate(tmp_path / "absent.gguf", tmp_path / "absent", min_agreement=2)
    with pytest.raises(errors.UsageError, match="KL gate"):
        edgepack.replay(tmp_path / "absent.gguf", max_kl=-1)


def test_fit_tells_the_commands_json(gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = edgepack.fit(gguf, device="gtx-1660", ctx=512)
    assert found.fits
    assert found.memory.total == sum(dataclasses.astuple(found.memory)[:4])
    assert execute(["fit", str(gguf), "--device", "gtx-1660", "--ctx", "512", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found.json()


def test_progress_hears_every_byte(gguf: Path, tmp_path: Path) -> None:
    from contextlib import contextmanager

    heard: dict[str, list[int]] = {}

    @contextmanager
    def progress(label: str, total: int, unit: str = "B") -> Iterator[object]:
        heard[label] = [total, 0]

        def advance(amount: int) -> None:
            heard[label][1] += amount

        yield advance

    edgepack.pack(gguf, tmp_path / "a.edgepack", progress=progress)  # type: ignore[arg-type]
    assert heard["packing"] == [gguf.stat().st_size] * 2


ABSENT = {
    "analyze": ("absent",),
    "architecture_of": ("absent",),
    "bundle": ("absent.edgepack",),
    "calibrate": ("absent.gguf", "absent.jsonl"),
    "check_provenance": ("absent.edgepack", "absent"),
    "checkpoint": ("absent.gguf", "absent-folder"),
    "kv": ("absent.gguf", "absent.txt"),
    "compress": ("absent", "absent.toml", "absent-folder"),
    "frontier": ("absent", "absent.txt", "absent.txt", "absent-folder"),
    "provenance": ("absent.edgepack",),
    "reproduce": ("absent.edgepack", "absent"),
    "release": ("absent.edgepack", "absent-folder"),
    "update": ("absent.edgepack",),
    "validate_embeddings": ("absent.gguf", "absent"),
    "bench": ("absent.gguf",),
    "certify": ("absent.gguf", "absent"),
    "compare": (["absent.gguf"], "absent"),
    "diff": ("absent.gguf", "absent2.gguf"),
    "estimate_pack": ("absent.gguf",),
    "evaluate": ("absent.gguf", "absent", ["absent.jsonl"]),
    "extract": ("absent.edgepack", ["LICENSE"]),
    "fit": ("absent.gguf",),
    "imatrix": ("absent", "absent.txt"),
    "inspect": ("absent.gguf",),
    "load": ("absent.edgepack",),
    "pack": ("absent.gguf",),
    "patch": ("absent.gguf", "absent.edgepatch"),
    "replay": ("absent.edgepack",),
    "sign": ("absent.edgepack", "absent.key"),
    "recover": ("absent.gguf", "absent", "absent.txt"),
    "teach": ("absent.gguf", "absent-folder"),
    "tune": ("absent.gguf", "absent", "absent.txt", "absent-output.gguf"),
    "unpack": ("absent.edgepack",),
    "unpack_native": ("absent.gguf",),
    "validate": ("absent.gguf", "absent"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_file_that_is_not_there_is_an_error_of_the_tree_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(errors.EdgepackError, match="absent"):
        getattr(edgepack, name)(*ABSENT[name])
    assert [path for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_every_function_was_tried_on_absent_files() -> None:
    assert set(FUNCTIONS) - set(ABSENT) <= {"export", "fetch", "generate_key", "verify"}
