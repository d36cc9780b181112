"""The commands of the archive: keys that scripts rely on, exit codes, one line for every mistake."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edgepack.cli import execute as run
from edgepack.errors import UsageError
from edgepack.packaging.pack import pack_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line; gives its exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def archive(gguf: Path, tmp_path: Path, call: Any) -> Path:
    (tmp_path / "LICENSE").write_text("Apache-2.0\n")
    assert call("pack", gguf, "--include", tmp_path / "LICENSE")[0] == 0
    return gguf.with_suffix(".edgepack")


def json_of(result: tuple[int, str, str], code: int = 0) -> dict[str, Any]:
    assert result[0] == code
    parsed = json.loads(result[1])
    assert isinstance(parsed, dict)
    return parsed


def test_pack_and_unpack_print_the_keys_that_scripts_rely_on(gguf: Path, tmp_path: Path, call: Any) -> None:
    packed = json_of(call("pack", gguf, "-o", tmp_path / "a.edgepack", "--json"))
    unpacked = json_of(call("unpack", tmp_path / "a.edgepack", "-o", tmp_path / "out.gguf", "--json"))
    for result in (packed, unpacked):
        assert {"output", "bytes", "original_bytes", "sha256", "seconds"} <= set(result)
    assert packed["sha256"] == unpacked["sha256"]
    assert (packed["bytes"], packed["original_bytes"]) == (
        (tmp_path / "a.edgepack").stat().st_size,
        gguf.stat().st_size,
    )
    assert (tmp_path / "out.gguf").read_bytes() == gguf.read_bytes()


def test_names_are_chosen_when_none_is_given(gguf: Path, archive: Path, call: Any) -> None:
    content = gguf.read_bytes()
    code, out, err = call("unpack", archive)
    assert (code, out) == (2, "")
    assert "is there already: name the output with -o" in err
    gguf.unlink()
    code, out, err = call("unpack", archive)
    assert (code, out) == (0, "")
    assert "verified" in err
    assert gguf.read_bytes() == content


def test_inspect_prints_the_keys_that_scripts_rely_on(archive: Path, call: Any) -> None:
    result = json_of(call("inspect", archive, "--json", "--tensors"))
    assert result["format_version"] == "1.0"
    assert [member["name"] for member in result["members"]] == ["model.gguf", "LICENSE"]
    assert {"name", "bytes", "stored_bytes", "sha256"} <= set(result["members"][0])
    assert all({"kind", "bytes", "stored_bytes", "dictionary"} <= set(stream) for stream in result["streams"])
    assert {"Q5_K quants", "Q5_K scales", "metadata", "text"} <= {s["kind"] for s in result["streams"]}
    assert "blk.0.attn_q.weight" in [tensor["name"] for tensor in result["tensors"]]
    code, out, _err = call("inspect", archive, "--tensors")
    assert code == 0
    assert "Q5_K quants" in out
    assert "LICENSE" in out


def test_verify_tells_damage_by_its_place_and_exits_with_1(archive: Path, call: Any) -> None:
    assert json_of(call("verify", archive, "--json")) == {
        "ok": True, "problems": [], "signature": {"state": "unsigned", "keys": []}, "rollback": "",
    }  # fmt: skip
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 8
    archive.write_bytes(content)
    for options in ((), ("--deep",)):
        result = json_of(call("verify", archive, "--json", *options), 1)
        assert result["ok"] is False
        assert "chunk" in result["problems"][0]["where"]
        assert "SHA-256" in result["problems"][0]["what"]
    code, out, err = call("verify", archive)
    assert (code, out) == (1, "")
    assert "chunk" in err


def test_a_gguf_is_inspected_and_its_structure_verified(gguf: Path, call: Any) -> None:
    result = json_of(call("inspect", gguf, "--json", "--tensors"))
    assert result["format_version"] == "GGUF 3"
    assert result["members"][0]["sha256"] == hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert {"name": "blk.0.attn_v.weight", "type": "BF16", "bytes": 6600, "stored_bytes": 6600} in result["tensors"]
    assert "Q5_K" in call("inspect", gguf)[1]
    assert json_of(call("verify", gguf, "--json"))["ok"] is True
    gguf.write_bytes(gguf.read_bytes()[:-1000])
    assert "file ends after" in json_of(call("verify", gguf, "--json"), 1)["problems"][0]["what"]
    assert call("inspect", gguf)[0] == 6


def test_signatures_from_key_to_verdict(archive: Path, tmp_path: Path, call: Any) -> None:
    key, stranger = tmp_path / "key", tmp_path / "stranger"
    public = json_of(call("keygen", key, "--json"))["key"]
    assert call("keygen", stranger)[0] == 0
    assert "unsigned" in json_of(call("verify", archive, "--trusted", f"{key}.pub", "--json"), 1)["problems"][0]["what"]
    assert json_of(call("sign", archive, "--key", key, "--json"))["key"] == public
    trusted = json_of(call("verify", archive, "--trusted", f"{key}.pub", "--json"))
    assert trusted["signature"] == {"state": "signed by a trusted key", "keys": [public]}
    strange = json_of(call("verify", archive, "--trusted", f"{stranger}.pub", "--json"), 1)
    assert "signed by a stranger" in strange["problems"][0]["what"]
    content = bytearray(archive.read_bytes())
    content[-64 - 32 - 10] ^= 1  # in the signature; its record's digest is wrong then too
    archive.write_bytes(content)
    code, _out, err = call("verify", archive)
    assert code == 1
    assert "signatures" in err


def test_unpack_can_demand_a_trusted_signature(archive: Path, gguf: Path, tmp_path: Path, call: Any) -> None:
    key, out = tmp_path / "key", tmp_path / "out.gguf"
    assert call("keygen", key)[0] == 0
    code, _out, err = call("unpack", archive, "-o", out, "--trusted", f"{key}.pub")
    assert code == 1
    assert "the archive is unsigned" in err
    assert not out.exists()
    assert call("sign", archive, "--key", key)[0] == 0
    assert call("unpack", archive, "-o", out, "--trusted", f"{key}.pub")[0] == 0
    assert out.read_bytes() == gguf.read_bytes()


def test_a_dry_run_estimates_and_writes_nothing(gguf: Path, tmp_path: Path, call: Any) -> None:
    archive = tmp_path / "a.edgepack"
    estimate = json_of(call("pack", gguf, "-o", archive, "--dry-run", "--json"))
    assert not archive.exists()
    assert call("pack", gguf, "-o", archive)[0] == 0
    assert estimate["bytes"] == pytest.approx(archive.stat().st_size, rel=0.02)
    assert "would be about" in call("pack", gguf, "--dry-run")[2]


def test_extract_takes_members_and_tensors(archive: Path, gguf: Path, tmp_path: Path, call: Any) -> None:
    folder = tmp_path / "extracted"
    folder.mkdir()
    result = json_of(call("extract", archive, "blk.0.attn_v.weight", "LICENSE", "-o", folder, "--json"))
    assert (folder / "LICENSE").read_text() == "Apache-2.0\n"
    tensor = (folder / "blk.0.attn_v.weight.bin").read_bytes()
    assert tensor in gguf.read_bytes()
    assert [entry["bytes"] for entry in result["extracted"]] == [33 * 100 * 2, 11]
    assert call("extract", archive, "--members", "-o", folder)[0] == 2  # LICENSE is there
    assert call("extract", archive, "--members", "-o", folder, "--force")[0] == 0
    assert call("extract", archive, "-o", folder)[0] == 2
    assert call("extract", archive, "absent", "-o", folder)[0] == 2
    assert call("extract", archive, "LICENSE", "-o", tmp_path / "absent")[0] == 2


def test_diff_and_patch(gguf: Path, archive: Path, tmp_path: Path, call: Any) -> None:
    assert call("pack", gguf, "-o", tmp_path / "new.edgepack", "--base", archive)[0] == 0
    made = json_of(call("diff", archive, tmp_path / "new.edgepack", "-o", tmp_path / "p", "--json"))
    assert made["bytes"] == (tmp_path / "p").stat().st_size
    result = json_of(call("patch", archive, tmp_path / "p", "-o", tmp_path / "patched", "--json"))
    assert (tmp_path / "patched").read_bytes() == (tmp_path / "new.edgepack").read_bytes()
    assert result["sha256"] == made["sha256"]
    assert call("patch", gguf, tmp_path / "p", "-o", tmp_path / "other")[0] == 1
    assert not (tmp_path / "other").exists()


def test_mistakes_are_one_line_with_the_right_exit_code(gguf: Path, archive: Path, tmp_path: Path, call: Any) -> None:
    mistakes = [
        (("pack", tmp_path / "absent.gguf"), 2),
        (("pack", archive, "-o", tmp_path / "c"), 6),
        (("pack", archive), 2),
        (("pack", gguf, "-o", tmp_path / "absent" / "a"), 2),
        (("pack", gguf, "-o", "-", "--json"), 2),
        (("pack", gguf, "--base", gguf, "-o", tmp_path / "b"), 7),
        (("unpack", gguf), 7),
        (("unpack", archive, "-o", tmp_path / "absent" / "a"), 2),
        (("unpack", tmp_path / "absent"), 7),
        (("inspect", tmp_path / "LICENSE"), 7),
        (("verify", tmp_path / "LICENSE"), 1),
        (("sign", archive, "--key", gguf), 2),
        (("diff", archive, tmp_path / "absent"), 2),
    ]
    before = sorted(tmp_path.iterdir())
    for arguments, expected in mistakes:
        code, out, err = call(*arguments)
        assert (code, out) == (expected, ""), arguments
        assert err.splitlines()[-1].startswith("edgepack: error: ")
        assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_an_archive_goes_through_a_pipe(gguf: Path, tmp_path: Path) -> None:
    edgepack = [sys.executable, "-m", "edgepack"]
    out = tmp_path / "out.gguf"
    with subprocess.Popen([*edgepack, "pack", gguf, "-o", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pack:
        subprocess.run([*edgepack, "unpack", "-", "-o", out], stdin=pack.stdout, check=True, capture_output=True)
    assert out.read_bytes() == gguf.read_bytes()


def test_bytes_behind_the_last_tensor_are_told(gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "more.gguf"
    path.write_bytes(gguf.read_bytes() + bytes(-gguf.stat().st_size % 32) + b"hidden")
    assert run(["verify", str(gguf)]) == 0
    assert run(["verify", str(path)]) == 1
    assert "6 bytes behind the last tensor belong to none" in capfd.readouterr().err
    assert run(["pack", str(path), "-o", str(tmp_path / "a.edgepack")]) == 0
    assert "6 bytes behind the last tensor belong to none; they are packed as they are" in capfd.readouterr().err
    assert run(["unpack", str(tmp_path / "a.edgepack"), "-o", str(tmp_path / "b.gguf")]) == 0
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()
    assert run(["pack", str(gguf), "-o", str(tmp_path / "c.edgepack")]) == 0
    assert "belong to none" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="a time that cannot be set back")
@pytest.mark.parametrize("content", ["other", "same"])
def test_a_source_rewritten_meanwhile_is_noticed_though_its_size_and_time_are_the_same(
    content: str, gguf: Path, tmp_path: Path
) -> None:
    source = tmp_path / "a.gguf"
    source.write_bytes(gguf.read_bytes())
    status = source.stat()

    @contextmanager
    def rewriting(*_arguments: object) -> Iterator[Callable[[int], object]]:
        yield lambda _amount: None
        with source.open("r+b") as stream:  # behind what was read already
            last = source.read_bytes()[-1]
            stream.seek(-1, 2)
            stream.write(bytes([last ^ (content == "other")]))
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))

    if content == "same":
        pack_archive(source, tmp_path / "a.edgepack", progress=rewriting)
        return
    with pytest.raises(UsageError, match="changed while it was read"):
        pack_archive(source, tmp_path / "a.edgepack", progress=rewriting)
    assert not (tmp_path / "a.edgepack").exists()
