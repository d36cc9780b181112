"""`edgepack kv` from a text to a device's choice: what it measures, where it puts it, who reads it, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_models import Shape, write_random

import edgepack
from edgepack.cli import execute
from edgepack.edge.confidence.binding import contents_digest
from edgepack.edge.kv.record import find_table, read_record
from edgepack.edge.kv.sizes import row_bytes
from edgepack.gguf.reader import read_header
from edgepack.packaging.archive import open_archive
from edgepack.packaging.trust.policy import ANYONE
from edgepack.pipeline.kv.results import KvResult

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
BOOKS = ROOT / "data/books-llama-6m"
TEXT = ROOT / "data/own-words.txt"
TYPES = ("q8_0", "q8_0/q4_0", "q4_0")
CTX = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "books.gguf"
    assert execute(["export", str(BOOKS), "--target", "gguf-q8", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def studied(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KvResult]:
    """An archive that carries a table, and the result that made it."""
    folder = tmp_path_factory.mktemp("studied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(folder / "cache"))
        result = edgepack.kv(
            model, TEXT, folder / "k.edgepack", ctx=CTX, chunks=4, types=TYPES, dims=(9, 128), max_kl=0.5, threads=1
        )
    assert isinstance(result, KvResult)
    return folder / "k.edgepack", result


def test_every_cache_is_measured_and_finer_ones_cost_less(studied: tuple[Path, KvResult]) -> None:
    costs = {cost.name: cost for cost in studied[1].table.costs}
    assert list(costs) == ["f16", *TYPES]
    assert costs["f16"].kl == 0.0 < costs["q8_0"].kl < costs["q8_0/q4_0"].kl < costs["q4_0"].kl
    assert studied[1].table.chunks == 4


def test_the_archive_carries_the_table_of_the_very_contents(studied: tuple[Path, KvResult], model: Path) -> None:
    archive, result = studied
    with open_archive(archive, ANYONE) as opened:
        found = read_record(opened.gguf_header().metadata)
    assert found.digest == contents_digest(model, read_header(model)) == result.digest
    assert found.table.costs == result.table.costs
    assert found.table.max_kl == 0.5


def test_spectra_and_fewer_dimensions_stand_beside(studied: tuple[Path, KvResult]) -> None:
    spectra = studied[1].spectra
    assert spectra is not None
    assert len(spectra.layers) == 6
    few, every = spectra.costs
    assert (few.dimensions, every.dimensions) == (9, 128)
    assert few.kept_k < 1
    assert few.kl > 0.01
    assert every.kept_k == pytest.approx(1)
    assert every.kl < 1e-6  # all dimensions lose nothing
    assert every.bytes_per_token == row_bytes(studied[1].shape, "f16")


def test_json_is_whole_and_the_page_needs_nothing_else(studied: tuple[Path, KvResult]) -> None:
    told: dict[str, Any] = json.loads(json.dumps(studied[1].json(), allow_nan=False))
    assert told["smallest_within"] == "q4_0"
    assert told["caches"][1]["bytes_per_token"] == row_bytes(studied[1].shape, "q8_0")
    layer = told["spectra"]["layers"][0]["kinds"]["k_before"]["views"]["centred"]
    assert layer["k90"] <= layer["k95"] <= layer["k99"] <= 128
    shares = told["spectra"]["shares"]
    assert [one["share"] for one in shares] == [0.9, 0.95, 0.99]
    assert shares[0]["bytes_per_token"] < shares[2]["bytes_per_token"] < row_bytes(studied[1].shape, "f16")
    assert {row["ctx"] for row in told["contexts"]} >= {CTX, 1024}
    page = studied[1].html()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert f"{studied[1].table.costs[1].kl:.5f}" in page


def test_inspect_shows_what_a_file_states(studied: tuple[Path, KvResult], told: Callable[..., tuple[str, str]]) -> None:
    out, _err = told(0, "inspect", studied[0])
    assert "caches on" in out
    assert "within 0.5 nats: q4_0" in out
    found = json.loads(told(0, "inspect", studied[0], "--json")[0])
    assert [row["kv_type"] for row in found["kv"]["caches"]] == ["f16", *TYPES]
    assert "confidence" not in found


def test_the_table_holds_where_the_archive_is_installed(
    studied: tuple[Path, KvResult], told: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    told(0, "unpack", studied[0], "-o", path)
    found = find_table(path, read_header(path))
    assert found.problem == ""
    assert found.table is not None


def test_run_takes_keys_and_values_of_two_types(model: Path, told: Callable[..., tuple[str, str]]) -> None:
    for kind in ("q8_0/q4_0", "auto"):
        out, _err = told(
            0, "run", model, "--prompt", "The old man", "-n", 3, "--kv-type", kind, "--ctx", 64, "--device", "cpu"
        )
        assert out.strip()


def test_a_folder_is_measured_as_a_float16_file(told: Callable[..., tuple[str, str]]) -> None:
    arguments = ("--text", TEXT, "--ctx", 32, "--chunks", 2, "--types", "q4_0", "--threads", 1, "--no-spectra")
    out, err = told(0, "kv", BOOKS, *arguments, "--json")
    assert [row["kv_type"] for row in json.loads(out)["caches"]] == ["f16", "q4_0"]
    assert "scratch" in err


def test_a_dry_run_evaluates_and_writes_nothing(
    model: Path, told: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    out, _err = told(
        0, "kv", model, "--text", TEXT, "--ctx", 32, "--chunks", 3, "--types", "q8_0", "--no-spectra", "--dry-run",
        "-o", tmp_path / "never.gguf", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert (found["chunks"], found["evaluations"], found["caches"]) == (3, 6, ["f16", "q8_0"])
    assert list(tmp_path.glob("*.gguf")) == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--ctx", 2048), "context 2048: the model was trained with 1024"),
        (("--chunks", 1), "at least 2 chunks"),
        (("--types", "q3_k"), "KV cache type 'q3_k'"),
        (("--types", "q8_0/q4_0/f16"), "KV cache type 'q4_0/f16'"),
        (("--dims", "0"), "expected at least 1, got 0"),
        (("--dims", "nine"), "numbers separated by commas"),
        (("--dims", "9", "--no-spectra"), "leave out one of both"),
        (("--dims", "129", "--ctx", 32, "--chunks", 2, "--types", "f16"), "129, but the keys of layer 0 have 128"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(
    arguments: tuple[object, ...], match: str, model: Path, told: Callable[..., tuple[str, str]]
) -> None:
    _out, err = told(2, "kv", model, "--text", TEXT, *arguments)
    assert match in err


def test_a_text_shorter_than_two_chunks_is_refused(
    model: Path, told: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A few words only. " * 3)
    assert "a chunk needs 512" in told(2, "kv", model, "--text", text)[1]
    text.write_text("word " * 60)
    assert "expected at least 2" in told(2, "kv", model, "--text", text, "--ctx", 48)[1]
    assert "No such file" in told(2, "kv", model, "--text", tmp_path / "absent.txt")[1]


def test_a_folder_cannot_carry_a_table(told: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    _out, err = told(2, "kv", BOOKS, "--text", TEXT, "-o", tmp_path / "x.gguf")
    assert "export it, then measure the file" in err
    assert list(tmp_path.glob("*.gguf")) == []


def test_caches_that_llama_cpp_does_not_open_are_left_out_with_the_reason(
    told: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    path = write_random(tmp_path / "narrow.gguf", Shape(head_width=16))
    out, err = told(
        0, "kv", path, "--text", TEXT, "--ctx", 32, "--chunks", 2, "--types", "q8_0,bf16", "--no-spectra", "--json"
    )
    found = json.loads(out)
    assert [row["kv_type"] for row in found["caches"]] == ["f16", "bf16"]
    assert "do not divide heads of 16" in found["left_out"]["q8_0"]
    assert "q8_0 is left out" in err
