"""A derivation names every source by digest and no place, and making a file again from it gives the same bytes."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgepack
from edgepack.cli import execute as run
from edgepack.errors import ArchiveError, CheckpointError, UsageError
from edgepack.file_digest import file_sha256
from edgepack.packaging.archive import open_archive
from edgepack.packaging.derivation import MEMBER, decode, encode, read_derivation
from edgepack.pipeline.derivation import hub_origin, model_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret-place") / "words.txt"
    path.write_text("It was a dark night, and nobody came to the door of the old house. " * 400)
    return path


@pytest.fixture(scope="module")
def archive(books: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported with an importance matrix."""
    path = tmp_path_factory.mktemp("made") / "m.edgepack"
    edgepack.export(books, target="gguf-q4km", calibration=text, sequences=2, output=path)
    return path


def clone(books: Path, folder: Path) -> Path:
    """A second copy under another name."""
    return shutil.copytree(books, folder / "another-name", copy_function=shutil.copy)


def test_every_source_and_tensor_is_named_and_the_subject_is_the_member(archive: Path, books: Path, text: Path) -> None:
    said = edgepack.provenance(archive)
    assert {each.name: each.sha256 for each in said.of_role("model")} == {
        path.name: file_sha256(path) for path in books.iterdir() if path.suffix in (".json", ".safetensors")
    }
    assert [each.sha256 for each in said.of_role("calibration")] == [file_sha256(text)]
    with open_archive(archive) as opened:
        assert said.subjects[0].sha256 == opened.main.sha256
        types = {info.name: info.type.name for info in opened.gguf_header().tensors}
    assert dict(said.tensors) == types
    assert said.parameters == {"sequences": 2, "refine": False}  # the text is too uniform to measure curvature on


def test_it_is_an_in_toto_statement_with_slsa_provenance(archive: Path) -> None:
    with open_archive(archive) as opened:
        statement = json.loads(opened.read_member(MEMBER))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    build = statement["predicate"]["buildDefinition"]
    assert set(build) == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    for each in [*statement["subject"], *build["resolvedDependencies"]]:
        assert len(each["digest"]["sha256"]) == 64
    assert {"id", "version"} <= set(statement["predicate"]["runDetails"]["builder"])


def test_nothing_of_the_makers_machine_is_in_it(archive: Path, text: Path) -> None:
    with open_archive(archive) as opened:
        raw = b"".join(opened.read_member(member.name) for member in opened.members)
    for name in (text.parent.name, socket.gethostname(), str(Path.home())):
        if len(name) > 3:
            assert name.encode() not in raw
    assert b"words.txt" in raw


def test_a_second_copy_gives_the_same_bytes(archive: Path, books: Path, text: Path, tmp_path: Path) -> None:
    other_text = tmp_path / "renamed.txt"
    shutil.copy(text, other_text)
    found = edgepack.check_provenance(archive, clone(books, tmp_path), calibration=other_text)
    assert found.same
    assert found.recomputed == found.sha256
    assert (found.differences, found.sources) == ((), ())
    again = tmp_path / "again.edgepack"
    edgepack.export(books, target="gguf-q4km", calibration=text, sequences=2, output=again)
    with open_archive(again) as second, open_archive(archive) as first:
        ours, theirs = (json.loads(each.read_member(MEMBER)) for each in (first, second))
    assert ours["predicate"] == theirs["predicate"]  # no times, no random numbers


def test_one_changed_weight_is_told_by_its_tensor(
    archive: Path, books: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = clone(books, tmp_path)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(-7, 2)
        byte = stream.read(1)[0]
        stream.seek(-7, 2)
        stream.write(bytes([byte ^ 1]))
    assert run(["provenance", str(archive), "--check", str(folder), "--calibration", str(text), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["sources"] == ["model.safetensors (model): has other bytes"]
    assert [line.split(":")[0] for line in told["differences"]] == ["tensor 'output_norm.weight'"]
    assert not told["same"]


def test_what_the_derivation_names_must_be_given(archive: Path, books: Path) -> None:
    with pytest.raises(UsageError, match=r"'words\.txt' \(calibration\): give it with --calibration"):
        edgepack.check_provenance(archive, books)


def test_a_certificate_is_told_apart_from_a_difference(books: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("It was a dark night, and nobody came to the door of the old house. " * 40)
    edgepack.export(books, target="gguf-q8", output=tmp_path / "m.edgepack")
    options = edgepack.ScoringOptions(ctx=32, max_chunks=2)
    edgepack.certify(tmp_path / "m.edgepack", books, tmp_path / "c.edgepack", text=text, stored_tokens=8,
                     scoring=options)  # fmt: skip
    said = edgepack.provenance(tmp_path / "c.edgepack")
    assert said.certified_from == edgepack.provenance(tmp_path / "m.edgepack").subjects[0].sha256
    found = edgepack.check_provenance(tmp_path / "c.edgepack", books)
    assert found.same
    assert found.certificate_only
    assert found.recomputed == said.certified_from


def test_a_gguf_has_it_beside_itself_on_request(books: Path, tmp_path: Path) -> None:
    edgepack.export(books, target="gguf-q8", output=tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    with pytest.raises(UsageError, match="no derivation"):
        edgepack.provenance(tmp_path / "m.gguf")
    edgepack.export(books, target="gguf-q8", output=tmp_path / "m.gguf", provenance=True, force=True)
    assert edgepack.check_provenance(tmp_path / "m.gguf", books).same
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:-1] + b"\xff")
    found = edgepack.check_provenance(tmp_path / "m.gguf", books)
    assert not found.same
    assert found.sources[0].startswith("the derivation is of another file")


def test_pack_takes_what_lies_beside_a_gguf_and_notes_what_speaks_of_another(
    books: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, beside = tmp_path / "m.gguf", tmp_path / "m.intoto.json"
    edgepack.export(books, target="gguf-q8", output=model, provenance=True)
    edgepack.pack(model)
    assert edgepack.check_provenance(tmp_path / "m.edgepack", books).same
    with open_archive(tmp_path / "m.edgepack") as opened:
        assert opened.read_member(beside.name) == beside.read_bytes()
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")
    for content, why in ((beside.read_bytes(), "speaks of another file"), (b'{"a": 1}', "no derivation")):
        beside.write_bytes(content)
        assert run(["pack", str(model), "-o", str(tmp_path / "n.edgepack"), "--force"]) == 0
        assert why in capfd.readouterr().err
        with open_archive(tmp_path / "n.edgepack") as opened:
            assert [member.name for member in opened.members] == ["m.gguf"]


@pytest.mark.parametrize("output", ["c.edgepack", "c.gguf"])
def test_certifying_a_gguf_carries_its_derivation_on(output: str, books: Path, tmp_path: Path) -> None:
    model, text = tmp_path / "m.gguf", tmp_path / "words.txt"
    text.write_text("It was a dark night, and nobody came to the door of the old house. " * 40)
    edgepack.export(books, target="gguf-q8", output=model, provenance=True)
    options = edgepack.ScoringOptions(ctx=32, max_chunks=2)
    edgepack.certify(model, books, tmp_path / output, text=text, stored_tokens=16, scoring=options)
    said = edgepack.provenance(tmp_path / output)
    assert said.certified_from == file_sha256(model)
    found = edgepack.check_provenance(tmp_path / output, books)
    assert found.same
    assert found.certificate_only


def test_a_recipes_text_is_named_without_its_place(books: Path, text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[calibration]\ntext = "{text}"\nsequences = 2\nlength = 16\n[[pass]]\nname = "prune"\nmethod = "wanda"\nsparsity = 0.2\n'
    )
    made = edgepack.export(books, target="gguf-f16", recipe=recipe, output=tmp_path / "p.edgepack")
    with open_archive(made.output) as opened:
        raw = opened.read_range(opened.main, 0, opened.gguf_header().data_start) + opened.read_member(MEMBER)
    assert str(text.parent).encode() not in raw
    assert read_derivation(made.output).of_role("calibration")[0].name == "words.txt"
    assert edgepack.check_provenance(made.output, books, calibration=text).same


def test_the_hubs_commit_is_read_from_each_layout(tmp_path: Path) -> None:
    cached = tmp_path / "models--org--name" / "snapshots" / COMMIT
    cached.mkdir(parents=True)
    assert hub_origin(cached) == ("org/name", COMMIT)
    downloaded = tmp_path / "downloaded"
    kept = downloaded / ".cache" / "huggingface" / "download"
    kept.mkdir(parents=True)
    (kept / "config.json.metadata").write_text(f"{COMMIT}\netag\n1.0\n")
    assert hub_origin(downloaded) == ("", COMMIT)
    cloned = tmp_path / "cloned" / ".git"
    (cloned / "refs" / "heads").mkdir(parents=True)
    (cloned / "HEAD").write_text("ref: refs/heads/main\n")
    (cloned / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    assert hub_origin(cloned.parent) == ("", COMMIT)
    assert hub_origin(tmp_path) == ("", "")


def test_files_that_decide_nothing_are_not_sources(tmp_path: Path) -> None:
    for name in (
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "notes.txt",
        "vocab.txt",
        "x.gguf",
        ".hidden.json",
    ):
        (tmp_path / name).write_bytes(b"{}")
    assert [name for name, _path in model_files(tmp_path)] == ["config.json", "model.safetensors", "vocab.txt"]


BROKEN: dict[str, Any] = {
    "_type": "x", "predicateType": 1, "subject": {}, "predicate": [],
}  # fmt: skip


@pytest.mark.parametrize("key", BROKEN)
def test_a_statement_of_another_form_is_refused_by_its_field(archive: Path, key: str) -> None:
    said = {**edgepack.provenance(archive).statement, key: BROKEN[key]}
    with pytest.raises(ArchiveError, match=key):
        decode(json.dumps(said).encode(), "x")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_json_raises_anything_else(value: Any) -> None:
    with pytest.raises(ArchiveError):
        decode(json.dumps(value).encode(), "x")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sequences", "many"),
        ("output", "/x"),
        ("absent", 1),
        ("pure", 1),
        ("calibration", "/etc/passwd"),
        ("tensor_types", [1]),
    ],
)
def test_options_of_a_hostile_derivation_are_refused(
    archive: Path, books: Path, text: Path, tmp_path: Path, option: str, value: Any
) -> None:
    said = edgepack.provenance(archive)
    with open_archive(archive) as opened:
        (tmp_path / "m.gguf").write_bytes(opened.read_member(opened.main.name))
    statement = said.statement
    statement["predicate"]["buildDefinition"]["externalParameters"]["options"][option] = value
    (tmp_path / "m.intoto.json").write_bytes(json.dumps(statement).encode())
    with pytest.raises(ArchiveError, match=f"option '{option}'"):
        edgepack.check_provenance(tmp_path / "m.gguf", books, calibration=text)


def test_encoding_is_stable_and_decodes_to_itself(archive: Path) -> None:
    said = edgepack.provenance(archive)
    assert decode(encode(said), "x") == said


def test_a_source_that_shrinks_before_it_is_digested_is_refused(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the export's own check and the derivation: it would name another file than the one exported."""
    from edgepack.pipeline.derivation import Recorder

    model = clone(books, tmp_path)
    real = Recorder.derivation

    def derivation(self: Recorder, *arguments: Any) -> Any:
        with (model / "model.safetensors").open("r+b") as stream:
            stream.truncate(1000)
        return real(self, *arguments)

    monkeypatch.setattr(Recorder, "derivation", derivation)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        edgepack.export(model, target="gguf-q8", output=tmp_path / "m.edgepack")
    assert not (tmp_path / "m.edgepack").exists()
