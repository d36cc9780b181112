"""A broken file fails the gate and the message names what is broken: tensor, setting or token."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgepack.cli import execute as run
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def exported(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert run(["export", str(books), "--target", "gguf-q8", "-o", str(folder / "q8.gguf")]) == 0
    return folder


@pytest.fixture(scope="module")
def text(exported: Path, eval_text: str) -> Path:
    path = exported / "eval.txt"
    path.write_text(eval_text[:12_000], encoding="utf-8")
    return path


def changed(exported: Path, name: str, patch: Any) -> Path:
    """A copy of the export whose bytes `patch(header, bytearray)` changed."""
    path = exported / name
    shutil.copy(exported / "q8.gguf", path)
    raw = bytearray(path.read_bytes())
    patch(read_header(path), raw)
    path.write_bytes(raw)
    return path


def verdict(
    candidate: Path, books: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, Any], str]:
    capfd.readouterr()
    arguments = [str(candidate), "--reference", str(books), "--text", str(text), "--ctx", "128", "--no-floor"]
    code = run(["validate", *arguments, "--min-agreement", "0.95", "--json"])
    out, err = capfd.readouterr()
    return code, json.loads(out), err


def test_the_unbroken_file_passes(exported: Path, books: Path, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, told, err = verdict(exported / "q8.gguf", books, text, capfd)
    assert (code, err) == (0, "")
    assert told["passed"]


def test_one_corrupted_tensor_is_named(
    exported: Path, books: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def scramble(header: Any, raw: bytearray) -> None:
        info = header.tensor("blk.2.ffn_down.weight")
        start = header.data_start + info.offset
        raw[start : start + info.nbytes] = bytes(reversed(raw[start : start + info.nbytes]))
        blocks = np.frombuffer(raw, np.uint8)[start : start + info.nbytes].reshape(-1, 34)
        blocks[:, :2] = np.array([0.01], np.float16).view(np.uint8)  # scales stay numbers

    path = changed(exported, "corrupted.gguf", scramble)
    code, told, err = verdict(path, books, text, capfd)
    assert code == 1
    assert "FAILED min-agreement" in err
    assert "first goes wrong at token" in err
    assert "look at tensor 'blk.2.ffn_down.weight'" in err
    assert [weight["name"] for weight in told["findings"]["weights"] if weight["suspect"]] == ["blk.2.ffn_down.weight"]


def test_a_wrong_rope_base_is_named(exported: Path, books: Path, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def rebase(_header: Any, raw: bytearray) -> None:
        key = b"llama.rope.freq_base"
        value = raw.index(key) + len(key) + 4
        raw[value : value + 4] = np.float32(100.0).tobytes()

    code, _told, err = verdict(changed(exported, "rope.gguf", rebase), books, text, capfd)
    assert code == 1
    assert "look at llama.rope.freq_base: 100.0, original 10000.0" in err


def test_a_dropped_bos_is_named(exported: Path, books: Path, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def drop(_header: Any, raw: bytearray) -> None:
        key = b"tokenizer.ggml.add_bos_token"
        raw[raw.index(key) + len(key) + 4] = 0

    code, told, err = verdict(changed(exported, "bos.gguf", drop), books, text, capfd)
    assert code == 1
    assert "FAILED same-tokens: tokenizers differ at token 0: reference 4094 '<|begin_of_text|>'" in err
    assert "look at tokenizer.ggml.add_bos_token: False, original True" in err
    assert told["tokens_differ"]["position"] == 0


def test_a_swapped_tokenizer_is_named(
    exported: Path, books: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def swap(_header: Any, raw: bytearray) -> None:
        the, of = ("Ġthe".encode(), "Ġof".encode())
        first = raw.index(len(the).to_bytes(8, "little") + the)
        raw[first + 8 : first + 8 + len(the)] = "Ġxqj".encode()[: len(the)]
        assert of in raw

    code, told, err = verdict(changed(exported, "tokenizer.gguf", swap), books, text, capfd)
    assert code == 1
    assert "FAILED same-tokens: tokenizers differ at token" in err
    assert "look at tokenizer.ggml.tokens: item" in err
    assert not told["passed"]
