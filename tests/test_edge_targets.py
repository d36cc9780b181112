"""The commands that make, run and decode a variant, as a user calls them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepack.cli import execute as edgepack
from edgepack.export.coded.write import CodingRun
from edgepack.gguf.reader import read_header
from edgepack.quant.calibration.sweep import BlockVisit

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.coded.outcome import Coded
    from edgepack.export.coded.plan import PlannedMatrix


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert edgepack([*map(str, arguments), "--json"]) == 0
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return parsed


@pytest.mark.slow
def test_a_variant_is_exported_packed_run_and_decoded(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, archive = tmp_path / "books.gguf", tmp_path / "books.edgepack"
    exported = call(capsys, "export", books, "--target", "edge-nf4", "-o", file)
    assert exported["bytes"] == file.stat().st_size
    coded = [tensor for tensor in exported["tensors"] if tensor["stages"]]
    assert {tensor["type"] for tensor in coded} == {"nf4"}
    assert all(0 < tensor["error"] < 0.02 for tensor in coded)
    call(capsys, "pack", file, "-o", archive)
    prompt = ("--prompt", "It was a dark", "--max-tokens", 6, "--temperature", 0)
    texts = {call(capsys, "run", path, *prompt)["text"] for path in (file, archive, file)}
    assert len(texts) == 1
    assert texts.pop().strip()
    call(capsys, "unpack", archive, "-o", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == file.read_bytes()
    decoded = [
        call(capsys, "unpack", "--native", path, "-o", tmp_path / "n.gguf", "--force") for path in (file, archive)
    ]
    assert decoded[0]["sha256"] == decoded[1]["sha256"]
    wide = call(capsys, "unpack", "--native-type", "q8_0", file, "-o", tmp_path / "wide.gguf")
    assert wide["bytes"] == (tmp_path / "wide.gguf").stat().st_size
    assert read_header(tmp_path / "wide.gguf").tensor("blk.0.attn_q.weight").type.name == "Q8_0"


def test_a_variant_is_decoded_once(books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "books.gguf"
    call(capsys, "export", books, "--target", "edge-ternary", "-o", file)
    prompt = ("--prompt", "It", "--max-tokens", 1, "--temperature", 0)
    call(capsys, "run", file, *prompt)
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/models").glob("*.gguf")}
    assert len(entries) == 1
    call(capsys, "run", file, *prompt)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/models").glob("*.gguf")} == entries
    next(iter(entries)).write_bytes(b"damaged")
    call(capsys, "run", file, *prompt)
    assert next(iter(entries)).stat().st_size > 1_000_000


def test_mixed_codecs_and_chains_are_reported_by_stage(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = call(
        capsys, "export", books, "--target", "edge-nf4+ternary", "-o", tmp_path / "m.gguf",
        "--tensor-codec", "ffn_.*=ternary", "--skip-harmful",
    )  # fmt: skip
    types = {tensor["name"]: tensor for tensor in exported["tensors"]}
    assert types["blk.0.ffn_down.weight"]["type"] == "ternary"
    stages = types["blk.0.attn_q.weight"]["stages"]
    assert [stage["codec"] for stage in stages] == ["nf4", "ternary"]
    assert stages[0]["error"] == stages[1]["error_before"]
    assert types["output_norm.weight"]["type"] == "F32"


def test_a_dry_run_writes_nothing(books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = call(capsys, "export", books, "--target", "edge-vptq3", "-o", tmp_path / "m.gguf", "--dry-run")
    assert {tensor["type"] for tensor in planned["tensors"]} == {"vptq", "F32"}
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--target", "edge-seedlm5"), 2, "did you mean 'seedlm"),
        (("--target", "edge-nf4:speed=9"), 2, "unknown option"),
        (("--target", "edge-nf4", "--tensor-codec", "attn"), 2, "expected REGEX=CODEC"),
        (("--target", "edge-nf4", "--tensor-type", "attn=q8_0"), 2, "expected a gguf target"),
        (("--target", "edge-nf4", "--pure"), 2, "--pure: expected a gguf target, got 'edge-nf4'"),
        (("--target", "edge-nf4", "--shard-size", "1MB"), 2, "--shard-size: expected a gguf target"),
        (("--target", "edge-nf4", "--dry-run", "--calibration", "x.txt"), 2, "collecting is work"),
        (("--target", "edge-nf4+ternary", "--dry-run", "--skip-harmful"), 2, "expected no --dry-run"),
        (("--target", "edge-nf4", "--imatrix", "a", "--calibration", "b"), 2, "expected one of them, got both"),
        (("--target", "gguf-q8", "--skip-harmful"), 2, "--skip-harmful: expected an edge target, got 'gguf-q8'"),
        (("--target", "edge-nf4", "-o", "/nowhere/x.gguf"), 2, "does not exist"),
    ],
)
def test_mistakes_end_in_one_line(
    books: Path, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edgepack(["export", str(books), *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_plain_gguf_is_not_decoded(books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "export", books, "--target", "gguf-q8", "-o", tmp_path / "plain.gguf")
    assert edgepack(["unpack", "--native", str(tmp_path / "plain.gguf"), "-o", str(tmp_path / "n.gguf")]) == 13
    assert "not of the variant" in capsys.readouterr().err


def test_a_dry_run_of_an_export_has_its_bytes_and_components(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("export", books, "--target", "edge-nf4", "--tensor-codec", "ffn_.*=ternary", "-o", tmp_path / "m.gguf")
    planned = call(capsys, *arguments, "--dry-run")
    assert list(tmp_path.glob("*.gguf")) == []
    written = call(capsys, *arguments)
    assert planned["bytes"] == written["bytes"] == (tmp_path / "m.gguf").stat().st_size
    for key in ("name", "shape", "source_type", "type", "bytes", "components"):
        assert [tensor[key] for tensor in planned["tensors"]] == [tensor[key] for tensor in written["tensors"]]
    header = read_header(tmp_path / "m.gguf")
    components = [part for tensor in planned["tensors"] for part in tensor["components"]]
    assert [(part["name"], tuple(part["shape"]), part["type"], part["bytes"]) for part in components] == [
        (info.name, info.shape, info.type.name, info.nbytes) for info in header.tensors
    ]


def test_a_size_is_what_may_be_shipped(books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, options, told in (
        ("x.gguf", (), "edge-ternary makes"), ("x.edgepack", ("--pack",), "the archive as edge-ternary is larger than"),
    ):  # fmt: skip
        arguments = ["export", str(books), "--target", "edge-ternary", "-o", str(tmp_path / name), *options]
        assert edgepack([*arguments, "--max-size", "500KB"]) == 2
        assert f"--max-size: {told}" in capsys.readouterr().err
        assert [path for path in tmp_path.iterdir() if path.is_file()] == []
        assert edgepack([*arguments, "--max-size", "1.4MB"]) == 0
        capsys.readouterr()
        (tmp_path / name).unlink()


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_merged_into_what_is_coded(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(books, dtype="float32")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=2, lora_alpha=4)
    model = peft.get_peft_model(base, settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    shutil.copytree(books, tmp_path / "merged", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "merged").chmod(0o755)
    (tmp_path / "merged/config.json").unlink()
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    ternary = ("--target", "edge-ternary", "--adapter", tmp_path / "adapter")
    call(capsys, "export", books, *ternary, "-o", tmp_path / "a.gguf")
    call(capsys, "export", tmp_path / "merged", "--target", "edge-ternary", "-o", tmp_path / "b.gguf")
    apart = call(capsys, "export", books, *ternary, "--adapter-mode", "separate", "-o", tmp_path / "c.gguf")
    assert apart["adapter"] == str(tmp_path / "c-lora.gguf")
    assert read_header(tmp_path / "c-lora.gguf").get("general.type") == "adapter"
    data = [path.read_bytes()[read_header(path).data_start :] for path in (tmp_path / f"{n}.gguf" for n in "abc")]
    # The merged checkpoint was rounded to float32 by another order of sums: a few trits at a boundary may differ.
    same = np.frombuffer(data[0], np.uint8) == np.frombuffer(data[1], np.uint8)
    assert len(data[0]) == len(data[1])
    assert same.mean() > 0.999
    assert data[2] != data[0]


@pytest.mark.slow
def test_a_gate_that_a_variant_misses_exits_with_one_and_keeps_the_file(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a dark night, and the wind was loud in the chimney. " * 40)
    arguments = ["export", str(books), "--target", "edge-ternary", "-o", str(tmp_path / "x.gguf"), "--text", str(text)]
    assert edgepack([*arguments, "--chunks", "2", "--min-agreement", "0.95", "--json"]) == 1
    captured = capsys.readouterr()
    assert "FAILED min-agreement" in captured.err
    assert json.loads(captured.out)["validation"]["top1_agreement"] < 0.95
    assert (tmp_path / "x.gguf").exists()


@pytest.mark.slow
def test_a_calibrated_export_that_was_killed_while_coding_calibrates_once(
    books: Path, eval_text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, file, text = (tmp_path / name for name in ("whole.gguf", "books.gguf", "text.txt"))
    text.write_text(eval_text, encoding="utf-8")
    options = ("--target", "edge-vptq2:tuning=0", "--calibration", text, "--sequences", 4, "--length", 64)
    call(capsys, "export", books, *options, "-o", whole)
    code, coded = CodingRun.code, []

    def killed(self: CodingRun, tensor: PlannedMatrix) -> Coded | None:
        coded.append(tensor.name)
        if len(coded) == 12:
            raise KeyboardInterrupt
        return code(self, tensor)

    monkeypatch.setattr(CodingRun, "code", killed)
    assert edgepack(["export", str(books), *map(str, options), "-o", str(file)]) == 130
    assert list(tmp_path.glob(".edgepack-calibration-books.gguf/*.hessian"))
    monkeypatch.setattr(BlockVisit, "observe", None)
    call(capsys, "export", books, *options, "-o", file, "--resume")
    assert file.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [
        "books.gguf",
        "text.txt",
        "whole.gguf",
    ]
