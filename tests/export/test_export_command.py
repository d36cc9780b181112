"""`edgepack export` as scripts and people use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from edgepack.cli import execute as run
from edgepack.gguf.reader import read_header
from edgepack.quant.types.targets import TARGETS, find_target

if TYPE_CHECKING:
    from pathlib import Path


def test_json_is_one_object_with_the_contracts_keys(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.gguf"
    assert run(["export", str(books), "--target", "gguf-q5km", "-o", str(path), "--json"]) == 0
    out = capsys.readouterr()
    result = json.loads(out.out)
    assert out.err == ""
    assert result["output"] == str(path)
    assert result["bytes"] == path.stat().st_size
    assert result["target"] == "gguf-q5km"
    assert sum(tensor["bytes"] for tensor in result["tensors"]) < result["bytes"]
    assert {"name", "shape", "source_type", "type", "bytes"} <= set(result["tensors"][0])


@pytest.mark.parametrize("target", ["f32", "q5km", "q4_0"])
def test_a_dry_run_is_exact_to_the_byte_and_writes_nothing(
    target: str, books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["export", str(books), "--target", target, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    assert run(["export", str(books), "--target", target, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert planned["tensors"] == made["tensors"]
    assert planned["bytes"] == made["bytes"] == (tmp_path / made["output"]).stat().st_size


def test_the_default_name_follows_the_gguf_naming_convention(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["export", str(books), "--target", "q4_k_m"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["books-llama-6M-Q4_K_M.gguf"]


def test_threads_do_not_change_the_file(books: Path, tmp_path: Path) -> None:
    files = []
    for threads in ("1", "3"):
        path = tmp_path / f"{threads}.gguf"
        assert run(["export", str(books), "--target", "q5km", "-o", str(path), "--threads", threads]) == 0
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_metadata_is_what_llama_cpps_converter_writes(books: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    assert run(["export", str(books), "--target", "q5km", "-o", str(path)]) == 0
    header = read_header(path)
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "Books Llama 6m",
        "general.basename": "books-llama",
        "general.size_label": "6M",
        "llama.block_count": 6,
        "llama.context_length": 1024,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 768,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.vocab_size": 4096,
        "llama.rope.dimension_count": 32,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 4094,
        "tokenizer.ggml.eos_token_id": 4095,
        "tokenizer.ggml.add_bos_token": True,
        "general.quantization_version": 2,
        "general.file_type": 17,
    }
    assert {key: header.get(key) for key in expected} == expected
    assert list(header.metadata)[0] == "general.architecture"


def test_overrides_choose_types_by_hand(books: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tensor-type", "ffn_down=q6_k", "--tensor-type", r"attn_.*=q8_0", "--output-type", "q4_0", "--dry-run"]
    assert run(["export", str(books), "--target", "q4km", "--json", *options]) == 0
    types = {tensor["name"]: tensor["type"] for tensor in json.loads(capsys.readouterr().out)["tensors"]}
    assert {types[f"blk.{i}.ffn_down.weight"] for i in range(6)} == {"Q6_K"}
    assert {types[f"blk.{i}.attn_q.weight"] for i in range(6)} == {"Q8_0"}
    assert types["token_embd.weight"] == "Q4_0"
    assert types["blk.0.ffn_up.weight"] == "Q4_K"


@pytest.mark.parametrize("text", ["ffn_down", "(=q6_k", "ffn=q99"])
def test_an_override_that_is_none_is_refused(text: str, books: Path) -> None:
    assert run(["export", str(books), "--target", "q4km", "--tensor-type", text, "--dry-run"]) == 2


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_every_target_is_found_by_each_of_its_spellings(target: object) -> None:
    for spelling in (target.name, target.label, target.label.lower(), f"gguf-{target.label.lower()}"):
        assert find_target(spelling) is target


def test_ctrl_c_leaves_no_file(books: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "from edgepack.export import chunks\n"
        "original = chunks.quantize_rows\n"
        "def slow(*arguments):\n"
        "    os.write(1, b'started\\n'); time.sleep(0.05); return original(*arguments)\n"
        "chunks.quantize_rows = slow\n"
        "from edgepack.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["export", str(books), "--target", "q5km", "-o", str(tmp_path / "x.gguf")]
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert first == "started\n"  # one write a line: threads do not mix theirs
    assert process.returncode == 130
    assert error.strip() == "edgepack: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing_under_the_final_name(books: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    script = (
        "import sys, os\n"
        "from edgepack.gguf import writer\n"
        "def die(self): os._exit(9)\n"
        "writer.GGUFWriter.close = die\n"
        "from edgepack.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    result = subprocess.run([sys.executable, "-c", script, "export", str(books), "--target", "q8", "-o", str(path)])
    assert result.returncode == 9
    assert not path.exists()
    assert run(["export", str(books), "--target", "q8", "-o", str(path)]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
