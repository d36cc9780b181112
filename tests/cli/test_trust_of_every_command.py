"""One policy on every path that takes an archive: who signed it decides before anything in it is used.

The tables name every command of edgepack; one that is in neither fails the first test, so that a new command is held
against the policy before it is shipped.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from tiny_models import Shape, write_random

from edgepack.cli import COMMANDS, execute
from edgepack.packaging import records
from edgepack.packaging.archive import open_unjudged
from edgepack.packaging.delta.diff import diff_files
from edgepack.packaging.format import Footer
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.signing import generate_key, sign_archive
from edgepack.packaging.trust.policy import ANYONE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What is asked of each command, {archive} in it; several where there are several paths to an archive.
TAKES = {
    "unpack": [
        "{archive} -o {out}/restored",
        "{archive} -o {out}/native --native",
        "{archive} --native-type q8_0 -o {out}/n",
    ],
    "verify": ["{archive}", "{archive} --deep"],
    "run": ["{archive} --prompt a -n 1 --ctx 64", "{archive} --prompt a -n 1 --ctx 64 --from-archive always"],
    "serve": ["{archive} --port {taken}"],
    "embed": ["{archive} text --ctx 64"],
    "bench": ["{archive} -r 1 --n-prompt 4 --n-gen 1"],
    "fit": ["{archive} --no-probe"],
    "extract": ["{archive} output_norm.weight -o {out}"],
    "validate": [
        "{archive} --reference {gguf} --text {text} --ctx 32 --chunks 2",
        "{gguf} --reference {archive} --text {text} --ctx 32 --chunks 2",
        "{archive}",
    ],
    "compare": ["{archive} --reference {gguf} --text {text} --ctx 32 --chunks 2"],
    "evaluate": ["{archive} --reference {gguf} --task {items}"],
    "kv": ["{archive} --text {text} --ctx 32 --chunks 2 --types q8_0 --no-spectra"],
    "calibrate": ["{archive} --questions {items} -o {out}/c.edgepack"],
    "certify": ["{archive} --reference {gguf} --text {text} --ctx 32 -o {out}/c.edgepack"],
    "diff": ["{archive} {gguf} -o {out}/d", "{gguf} {archive} -o {out}/d"],
    "patch": ["{archive} {patch_from} -o {out}/p", "{gguf} {patch_to} -o {out}/p"],
    "pack": ["{gguf} --base {archive} -o {out}/b.edgepack"],
    "provenance": ["{archive}", "{archive} --check {gguf}"],
    "reproduce": ["{archive} --model {gguf}"],
    "release": ["{archive} -o {out}/r", "{archive} -o {out}/r --gguf --key {key}"],
    "bundle": ["{archive} -o {out}/bundle --wheels {out} --offline"],
}
# These tell what signatures say, or mend them: they refuse what is wrongly signed, and trust nobody.
TELL = {"inspect": ["{archive}"], "sign": ["{archive} --key {key} -o {out}/signed-{state}"]}
# These take no archive at all, and say so when they get one.
TAKE_NONE = {
    "export": "{archive} --target gguf-f16 -o {out}/e",
    "compress": "{archive} {text} -o {out}/c",
    "analyze": "{archive}",
    "prune-grid": "{archive} --text {text}",
    "imatrix": "{archive} --calibration {text} -o {out}/i",
    "frontier": "{archive} --calibration {text} --text {text} -o {out}/f --chunks 1 --ctx 32",
    "tune": "{archive} --reference {gguf} --text {text} -o {out}/t",
    "recover": "{archive} --reference {gguf} --text {text} -o {out}/t",
    "teach": "{archive} --documents {out} -o {out}/t",
    "keygen": None,
    "trust": None,
    "cache": None,
    "doctor": None,
    "checkpoint": "{archive} -o {out}/c",
    "fetch": None,  # their archives come from a server: tests/edge/fetch holds them against the policy
    "update": None,
}
STATES = ("unsigned", "stranger", "wrong", "trusted")
ROWS = [(command, line) for command, lines in TAKES.items() for line in lines]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One archive for each state, with patches from and to it, a key, a text and a task."""
    folder = tmp_path_factory.mktemp("signed")
    gguf = write_random(folder / "model.gguf", Shape())
    for name in ("author", "other"):
        generate_key(folder / name)
    pack_archive(gguf, folder / "unsigned.edgepack", threads=1)
    for name, key in (("trusted", "author"), ("stranger", "other"), ("wrong", "author")):
        sign_archive(folder / "unsigned.edgepack", folder / key, folder / f"{name}.edgepack")
    spoil(folder / "wrong.edgepack")
    for name in STATES:
        archive = folder / f"{name}.edgepack"
        if name != "wrong":  # whose patches no edgepack writes: they are made of another's bytes
            diff_files(archive, gguf, folder / f"{name}.from", trust=ANYONE)
            diff_files(gguf, archive, folder / f"{name}.to", trust=ANYONE)
    (folder / "text.txt").write_text("In the beginning there was a sentence. " * 20)
    item = {"query": "a", "choices": ["b", "c"], "gold": 0}
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n")
    return folder


def spoil(path: Path) -> None:
    """Make the archive's signature wrong."""
    with open_unjudged(path) as archive:
        footer, ((key, signature),) = archive.footer, archive.signatures
    record = records.encode_signatures([(key, signature[:-1] + bytes([signature[-1] ^ 1]))])
    end = footer.index_offset + footer.index_bytes
    closing = Footer(footer.index_offset, footer.index_bytes, len(record)).encode()
    path.write_bytes(path.read_bytes()[:end] + record + closing)


@pytest.fixture
def call(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[object]:
    """Runs a line of the table on the archive of a state; gives the exit code and what was said."""
    import socket

    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEPACK_TRUST", str(tmp_path / "trust.json"))
    (tmp_path / "out").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:  # `serve` has opened the file when it finds this taken

        def run(command: str, line: str, state: str, *options: str) -> tuple[int, str]:
            archive = tmp_path / "model.edgepack"
            shutil.copyfile(files / f"{state}.edgepack", archive)
            places = {
                "archive": archive, "gguf": files / "model.gguf", "out": tmp_path / "out", "text": files / "text.txt",
                "items": files / "items.jsonl", "key": files / "other", "taken": listener.getsockname()[1],
                "state": state, "patch_from": files / f"{state}.from", "patch_to": files / f"{state}.to",
            }  # fmt: skip
            code = execute([command, *line.format(**places).split(), *options])
            out, err = capfd.readouterr()
            assert "Traceback" not in err
            return code, out + err

        yield run


def assert_refused(told: tuple[int, str], tmp_path: Path) -> None:
    code, text = told
    assert code == 1, text
    assert "the archive is" in text or "a GGUF cannot be signed" in text
    assert not list((tmp_path / "out").iterdir())
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".gguf", ".json")]


def assert_let_in(told: tuple[int, str]) -> None:
    """The command went on with the archive; whatever it then lacks is another matter."""
    assert "the archive is" not in told[1]


def test_every_command_is_in_a_table() -> None:
    assert {*TAKES, *TELL, *TAKE_NONE} == set(COMMANDS)


@pytest.mark.parametrize(("command", "line"), ROWS, ids=lambda text: text.split(" -")[0])
@pytest.mark.parametrize("state", ["unsigned", "stranger"])
def test_who_is_not_trusted_is_refused(files: Path, tmp_path: Path, call, command: str, line: str, state: str) -> None:
    key = files / "author.pub"
    assert_refused(call(command, line, state, "--trusted", str(key)), tmp_path)
    assert execute(["trust", "add", str(key)]) == 0
    assert_refused(call(command, line, state), tmp_path)


@pytest.mark.parametrize(("command", "line"), ROWS, ids=lambda text: text.split(" -")[0])
def test_a_wrong_signature_is_refused_whatever_is_allowed(
    files: Path, tmp_path: Path, call, command: str, line: str
) -> None:
    if command == "patch":
        pytest.skip("a patch to or from a wrongly signed archive has a test of its own")
    for options in ([], ["--allow-untrusted"], ["--trusted", str(files / "author.pub")]):
        told = call(command, line, "wrong", *options)
        assert_refused(told, tmp_path)
        assert options[:1] == ["--trusted"] or "wrongly signed" in told[1]


@pytest.mark.parametrize("new", [False, True])
def test_a_patch_neither_takes_nor_makes_a_wrongly_signed_archive(files: Path, tmp_path: Path, new: bool) -> None:
    """No edgepack writes such a patch: here the archive is spoilt behind its back, which the old file's digest allows."""
    plain, wrong = files / "model.gguf", tmp_path / "wrong.edgepack"
    shutil.copyfile(files / "wrong.edgepack", wrong)
    old, made = (plain, wrong) if new else (wrong, plain)
    patch = tmp_path / "patch"
    with pytest.MonkeyPatch.context() as context:
        context.setattr("edgepack.packaging.delta.pieces.is_archive", lambda _path: False)
        diff_files(old, made, patch)
    assert execute(["patch", str(old), str(patch), "-o", str(tmp_path / "made"), "--allow-untrusted"]) == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("command", "line"), ROWS, ids=lambda text: text.split(" -")[0])
def test_who_is_trusted_gets_in_and_anybody_where_nobody_was_named(files: Path, call, command: str, line: str) -> None:
    key = str(files / "author.pub")
    if not line.startswith("{gguf}"):  # which cannot be signed
        assert_let_in(call(command, line, "trusted", "--trusted", key))
    assert_let_in(call(command, line, "unsigned"))
    assert execute(["trust", "add", key]) == 0
    assert_let_in(call(command, line, "trusted"))
    assert_let_in(call(command, line, "stranger", "--allow-untrusted"))


@pytest.mark.parametrize(("command", "line"), [(c, line) for c, lines in TELL.items() for line in lines])
def test_what_tells_of_signatures_still_refuses_a_wrong_one(tmp_path: Path, call, command: str, line: str) -> None:
    code, told = call(command, line, "wrong")
    assert code == 1
    assert "wrong" in told
    assert not list((tmp_path / "out").iterdir())
    for state in ("unsigned", "stranger", "trusted"):
        assert call(command, line, state)[0] == 0


@pytest.mark.parametrize(("command", "line"), [row for row in TAKE_NONE.items() if row[1]])
def test_the_other_commands_take_no_archive(call, command: str, line: str) -> None:
    assert call(command, line, "trusted")[0] not in (0, 1)


@pytest.mark.parametrize("command", ["run", "validate", "fit", "unpack --native", "verify"])
def test_a_file_that_cannot_be_signed_is_refused_where_a_key_was_named(files: Path, command: str, capfd) -> None:
    extra = ["--prompt", "a"] if command == "run" else []
    arguments = [*command.split(), str(files / "model.gguf"), *extra, "--trusted", str(files / "author.pub")]
    assert execute([*arguments, "--reference", str(files / "model.gguf")] if command == "validate" else arguments) == 1
    assert "cannot be signed" in capfd.readouterr().err


def test_the_store_can_be_listed_and_a_key_taken_out_again(files: Path, tmp_path: Path, call, capfd) -> None:
    assert execute(["trust", "add", str(files / "author.pub"), "--name", "the author"]) == 0
    capfd.readouterr()
    assert execute(["trust", "list", "--json"]) == 0
    (entry,) = json.loads(capfd.readouterr().out)["keys"]
    assert entry["name"] == "the author"
    assert execute(["trust", "add", str(files / "author.pub"), "--name", "again"]) == 2
    assert execute(["trust", "remove", "nobody"]) == 2
    assert execute(["trust", "remove", entry["key"][:8]]) == 0
    assert_let_in(call("verify", "{archive}", "unsigned"))
