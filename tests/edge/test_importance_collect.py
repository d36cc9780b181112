"""Importance collected from llama.cpp's graph: torch's own moments agree, experts add up, runs go on where they stop."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
from references.llama_quantize import llama_quantize, tensors_of
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint

from edgepack.cli import execute as run
from edgepack.edge.llama.importance_collect import CollectOptions, collect_importance
from edgepack.errors import CalibrationError, UsageError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import PlanOptions, plan_export
from edgepack.gguf.reader import read_header
from edgepack.pipeline.importance import ImportanceRun
from edgepack.quant.calibration.importance_file import read_importance
from edgepack.quant.types.targets import find_target

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OPTIONS = CollectOptions(chunk=256, chunks=3, threads=1)


@pytest.fixture(scope="module")
def full(books, tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "books-f32.gguf"
    write_gguf(plan_export(open_model(books), find_target("gguf-f32")), path, threads=1)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory, books):
    """English of the bundled model's kind, long enough for four pieces of 256 tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    sentences = ["It was a bright morning and the whole village had gone down to the river.",
                 "She asked whether 3 of the 12 letters had come; nobody knew.",
                 "“Well,” said the captain, “we shall see what the night will bring.”"]  # fmt: skip
    order = np.random.default_rng(0).integers(0, 3, size=110)
    path.write_text(" ".join(sentences[at] for at in order), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def collected(full, text):
    return collect_importance(full, text.read_text(), "text.txt", OPTIONS)


def test_means_equal_torchs_on_the_same_tokens(books, collected, full, text, monkeypatch):
    from contextlib import closing

    from edgepack.edge.llama.importance_collect import ImportanceCollector
    from edgepack.quant.calibration.collect import collect

    with closing(ImportanceCollector(full, OPTIONS)) as collector:
        tokens = collector.chunks(text.read_text()).astype(np.int64)
    assert tokens.shape == (3, 256)
    assert (tokens[:, 0] == 4094).all()
    monkeypatch.setenv("EDGEPACK_PRODUCTS", "float32")  # as the file is run
    reference = collect(open_checkpoint(books), tokens).statistics
    assert len(collected.entries) == 42
    for layer in range(6):
        for theirs, ours in NAMES.items():
            means = collected.entries[f"blk.{layer}.{ours}.weight"].means[0]
            expected = reference[f"model.layers.{layer}.{theirs}.weight"].mean_square
            np.testing.assert_allclose(means, expected, rtol=2e-2, atol=1e-4 * expected.max())
            assert np.corrcoef(means, expected)[0, 1] > 0.99999
    assert all(entry.counts.tolist() == [3 * 256] for entry in collected.entries.values())


def test_experts_sums_add_up_to_the_routers(books, tmp_path, text):
    tiny = TinyModel("mixtral", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2})
    folder = write_checkpoint(random_model(tiny), tmp_path / "model", books)
    write_gguf(plan_export(open_model(folder), find_target("f32")), tmp_path / "m.gguf", threads=1)
    options = CollectOptions(chunk=128, chunks=2, threads=1)
    matrix = collect_importance(tmp_path / "m.gguf", text.read_text(), "t", options)
    for layer in range(2):
        router = matrix.entries[f"blk.{layer}.ffn_gate_inp.weight"]
        for name in ("ffn_gate_exps", "ffn_up_exps"):
            experts = matrix.entries[f"blk.{layer}.{name}.weight"]
            assert experts.sums.shape == (4, 64)
            assert experts.counts.sum() == 2 * 256
            np.testing.assert_allclose(experts.sums.sum(0), 2 * router.sums[0], rtol=1e-4)
        down = matrix.entries[f"blk.{layer}.ffn_down_exps.weight"]
        np.testing.assert_array_equal(down.counts, experts.counts)
    shapes = {name: rows.shape for name, rows in open_model(tmp_path / "m.gguf").tensors.items()}
    assert matrix.weights(shapes)["blk.0.ffn_up_exps.weight"].shape == (4, 64)


@pytest.mark.parametrize("target", ["gguf-q4km", pytest.param("gguf-iq2xs", marks=pytest.mark.slow)])
def test_bytes_equal_llama_cpps_with_the_same_matrix(full, collected, tmp_path, target):
    mapped, chosen = open_model(full), find_target(target)
    weights = collected.weights({name: rows.shape for name, rows in mapped.tensors.items()})
    write_gguf(
        plan_export(mapped, chosen, PlanOptions(importance=weights, quantizer="ggml")),
        tmp_path / "ours.gguf",
        threads=2,
    )
    assert llama_quantize(full, tmp_path / "theirs.gguf", chosen.file_type, importance=weights)
    assert tensors_of(tmp_path / "ours.gguf") == tensors_of(tmp_path / "theirs.gguf")


def test_a_run_goes_on_where_it_stopped_with_the_same_sums(full, text, tmp_path):
    whole = ImportanceRun(full, text, tmp_path / "whole.gguf", OPTIONS, keep_seconds=0).collect()
    part = ImportanceRun(full, text, tmp_path / "part.gguf", OPTIONS, keep_seconds=0)

    class StopError(Exception):
        pass

    def stopping(_label, _total, _unit):
        from contextlib import contextmanager

        @contextmanager
        def bar():
            yield lambda amount: stop() if amount else None

        def stop():
            raise StopError

        return bar()

    with pytest.raises(StopError):
        part.collect(progress=stopping)
    assert part.partial.exists()
    assert read_importance(part.partial).chunk_count == 1
    resumed = part.collect(resume=True)
    assert not part.partial.exists()
    for name, entry in whole.entries.items():
        np.testing.assert_array_equal(entry.sums, resumed.entries[name].sums)
        np.testing.assert_array_equal(entry.counts, resumed.entries[name].counts)


def test_a_kept_run_of_another_text_is_not_gone_on_with(full, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[::-1])
    first = ImportanceRun(full, other, tmp_path / "i.gguf", OPTIONS, keep_seconds=0)
    second = ImportanceRun(full, text, tmp_path / "i.gguf", OPTIONS, keep_seconds=0)
    first.collect()
    fresh = second.collect()
    first.partial.write_bytes(b"GGUF")
    again = second.collect(resume=True)
    np.testing.assert_array_equal(fresh.entries["blk.0.attn_q.weight"].sums, again.entries["blk.0.attn_q.weight"].sums)


def test_a_damaged_interrupted_run_is_begun_anew_with_a_note(full, text, tmp_path):
    told = []
    run = ImportanceRun(full, text, tmp_path / "i.gguf", OPTIONS, keep_seconds=0, note=told.append)
    kept = []

    def stop():
        kept.append(run.partial.read_bytes())

    @contextmanager
    def watching(_label, _total, _unit="B"):
        yield lambda amount: stop() if amount else None

    fresh = run.collect(progress=watching)
    header = read_header_of(tmp_path, kept[0])
    for info in header.tensors[:2]:  # sums and counts of one weight
        place = header.data_start + info.offset + 6
        run.partial.write_bytes(kept[0][:place] + bytes([kept[0][place] ^ 1]) + kept[0][place + 1 :])
        again = run.collect(resume=True)
        for name, entry in fresh.entries.items():
            np.testing.assert_array_equal(entry.sums, again.entries[name].sums)
        assert len(told) == 1
        assert told.pop().endswith("the run begins anew")
    run.partial.write_bytes(kept[0])
    run.collect(resume=True)
    assert told == []


def read_header_of(folder, content):
    (folder / "kept.gguf").write_bytes(content)
    return read_header(folder / "kept.gguf")


def test_the_command_collects_merges_and_shows(books, text, tmp_path, capsys):
    first, both = tmp_path / "first.gguf", tmp_path / "both.gguf"
    collect = ["imatrix", str(books), "--text", str(text), "--ctx", "256", "--chunks", "1", "--threads", "1"]
    assert run([*collect, "-o", str(first), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["output"], result["entries"], result["chunks"]) == (str(first), 42, 1)
    assert len(result["statistics"]) == 42
    assert [path.name for path in tmp_path.iterdir()] == ["first.gguf"]
    assert run([*collect, "--merge", str(first), "-o", str(both), "--show"]) == 0
    assert "blk.5.ffn_down.weight" in capsys.readouterr().out
    assert read_importance(both).chunk_count == 2
    assert run(["imatrix", "--merge", str(both), "--show"]) == 0


def test_export_calibrates_in_one_go(books, text, tmp_path):
    calibrated, plain, given = (tmp_path / f"{name}.gguf" for name in ("calibrated", "plain", "given"))
    export = ["export", str(books), "--target", "gguf-q4km"]
    assert run([*export, "--calibration", str(text), "--no-refine", "-o", str(calibrated)]) == 0
    assert run([*export, "-o", str(plain)]) == 0
    assert tensors_of(calibrated) != tensors_of(plain)
    assert run(["imatrix", str(books), "--text", str(text), "-o", str(tmp_path / "i.gguf")]) == 0
    assert run([*export, "--imatrix", str(tmp_path / "i.gguf"), "-o", str(given)]) == 0
    assert tensors_of(given) == tensors_of(calibrated)
    header = read_header(given)
    assert header.get("quantize.imatrix.file") == "i.gguf"
    assert header.get("quantize.imatrix.dataset") == text.name
    assert header.get("quantize.imatrix.entries_count") == 42
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gguf"] * 4


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["imatrix"], UsageError),
        (["imatrix", "BOOKS"], UsageError),
        (["imatrix", "--text", "TEXT"], UsageError),
        (["imatrix", "BOOKS", "--text", "SHORT"], CalibrationError),
        (["imatrix", "BOOKS", "--text", "absent.txt"], UsageError),
        (["imatrix", "BOOKS", "--text", "TEXT", "-o", "absent/i.gguf"], UsageError),
        (["imatrix", "--merge", "TEXT", "--show"], CalibrationError),
        (["export", "BOOKS", "--target", "gguf-q4km", "--imatrix", "TEXT"], CalibrationError),
        (["export", "BOOKS", "--target", "gguf-q4km", "--imatrix", "TEXT", "--calibration", "TEXT"], UsageError),
        (["export", "BOOKS", "--target", "gguf-iq2xxs"], CalibrationError),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(books, text, tmp_path, capsys, monkeypatch, arguments, error):
    monkeypatch.chdir(tmp_path)
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    places = {"BOOKS": books, "TEXT": text, "SHORT": short}
    assert run([str(places.get(argument, argument)) for argument in arguments]) == error.exit_code
    captured = capsys.readouterr()
    assert captured.err.startswith("edgepack: error: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [short]


def test_pieces_are_no_longer_than_the_model_knows(books, tmp_path, text):
    folder = write_checkpoint(
        random_model(TinyModel("short", "Llama", {"max_position_embeddings": 64})), tmp_path / "m", books
    )
    write_gguf(plan_export(open_model(folder), find_target("f32")), tmp_path / "m.gguf", threads=1)
    matrix = collect_importance(tmp_path / "m.gguf", text.read_text(), "t", CollectOptions(chunks=2, threads=1))
    assert (matrix.chunk_size, matrix.chunk_count) == (64, 2)
