"""A GGUF as source does what the checkpoint does: same bytes where nothing was lost; scratch is stated and removed."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch")

from safetensors.numpy import save_file
from wire_models import text_beside, write_small_llama

from edgepack.api.analysis import analyze
from edgepack.cli import execute
from edgepack.edge.fidelity.scoring import ScoringOptions
from edgepack.errors import UnsupportedModelError, UsageError
from edgepack.gguf.reader import read_header
from edgepack.pipeline.accepted import check_request
from edgepack.pipeline.export import run_export
from edgepack.pipeline.makers import opened
from edgepack.pipeline.prune_grid import GridRequest, PruneGrid
from edgepack.pipeline.request import ExportRequest
from edgepack.quant.wire.search import TOLERANCE, Search

if TYPE_CHECKING:
    from pathlib import Path

CALIBRATED: dict[str, Any] = {"sequences": 2, "length": 64}
SCALE = 4.85e-5  # of the wire, where the small model has just under 7 bits a weight


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("source") / "small")


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    return text_beside(model)


@pytest.fixture(scope="module")
def gguf(model: Path) -> Path:
    """All that the checkpoint has."""
    path = model.parent / "small-f32.gguf"
    run_export(ExportRequest(model, "gguf-f32", output=path))
    return path


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where scratch folders are made, so that what is left in it is seen."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def tensors_of(path: Path) -> bytes:
    return path.read_bytes()[read_header(path).data_start :]


def adapter_for(model: Path, folder: Path) -> Path:
    folder.mkdir()
    config = json.loads((model / "config.json").read_text())
    rng = np.random.default_rng(0)
    shapes = {"A": (2, config["hidden_size"]), "B": (config["num_attention_heads"] * config["head_dim"], 2)}
    save_file(
        {
            f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight": rng.normal(size=shape).astype("f4")
            for part, shape in shapes.items()
        },
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
    )
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"target": "gguf-q8", "passes": ("gptq",), "calibration": True},
        {"target": "gguf-q8", "passes": ("prune:method=wanda,sparsity=0.3",), "calibration": True},
        {"target": "edge-nf4", "calibration": True, **CALIBRATED},
        {"target": "gguf-q8", "adapter": True},
        {"target": "gguf-q8", "adapter": True, "adapter_mode": "separate"},
    ],
    ids=["gptq", "prune", "coded", "adapter", "separate"],
)
def test_the_weights_of_a_gguf_become_those_of_its_checkpoint(
    settings: dict[str, Any], model: Path, gguf: Path, text: Path, tmp_path: Path, scratch: Path
) -> None:
    made = dict(settings)
    if made.get("calibration"):
        made["calibration"] = text
    if made.get("adapter"):
        made["adapter"] = adapter_for(model, tmp_path / "adapter")
    results = [
        run_export(ExportRequest(source, **made, output=tmp_path / f"{name}.gguf"))
        for name, source in (("folder", model), ("file", gguf))
    ]
    first, second = (result.output for result in results)
    assert tensors_of(first) == tensors_of(second)
    assert [path.read_bytes() for path in results[0].adapters] == [path.read_bytes() for path in results[1].adapters]
    assert read_header(second).get("general.name") == read_header(gguf).get("general.name")
    assert list(scratch.iterdir()) == []


def test_the_wire_of_a_gguf_is_that_of_its_checkpoint(
    model: Path, gguf: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At one scale, of about 7.1 bits: archives hold the names and places of their sources, so their sizes differ by some
    # bytes, by which a search stops at another scale within its tolerance (.5 % of 7.3 bits, or 2.5 % of a scale), and
    # other rows are raised.
    monkeypatch.setattr(Search, "next_level", lambda _search: math.log2(SCALE))
    monkeypatch.setattr(Search, "hit", property(lambda search: bool(search.tried)))
    request = ExportRequest(
        model, "wire", bits=7.3, calibration=text, output=tmp_path / "folder.edgepack", **CALIBRATED
    )
    again = replace(request, model=gguf, output=tmp_path / "file.edgepack")
    folder, file = (run_export(each).made for each in (request, again))
    assert folder is not None
    assert file is not None
    assert folder.more["scale"] == pytest.approx(SCALE)
    for key in ("scale", "gguf_bytes", "raised_rows", "trellis"):
        assert file.more[key] == folder.more[key], key
    assert file.more["predicted_kl"] == pytest.approx(folder.more["predicted_kl"], rel=1e-6)
    assert file.more["archive_bytes"] == pytest.approx(folder.more["archive_bytes"], rel=TOLERANCE)


def test_a_dry_run_says_what_is_read_and_where_scratch_lies(
    gguf: Path, text: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "export",
        str(gguf),
        "--target",
        "wire",
        "--bits",
        "7",
        "--calibration",
        str(text),
        "--dry-run",
        "--json",
    ]
    assert execute(command) == 0
    (limit,) = json.loads(capsys.readouterr().out)["limits"]
    assert "read as a checkpoint of LlamaForCausalLM" in limit
    assert str(scratch) in limit
    assert list(scratch.iterdir()) == []


def test_scratch_is_gone_after_an_interruption(
    gguf: Path, text: Path, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_values: object, **_settings: object) -> None:
        assert any(scratch.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(opened, "read_request_recipe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_export(ExportRequest(gguf, "gguf-q8", passes=("gptq",), calibration=text, output=tmp_path / "x.gguf"))
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "x.gguf").exists()


def test_quantised_weights_are_quantised_again_only_where_that_is_said(model: Path, text: Path, tmp_path: Path) -> None:
    run_export(ExportRequest(model, "gguf-q8", output=tmp_path / "q8.gguf"))
    request = ExportRequest(
        tmp_path / "q8.gguf", "gguf-q4_0", passes=("gptq",), calibration=text, output=tmp_path / "x.gguf"
    )
    with pytest.raises(UsageError, match="--allow-requantize"):
        run_export(request)
    assert run_export(replace(request, allow_requantize=True)).output.is_file()
    wire = ExportRequest(tmp_path / "q8.gguf", "wire", bits=7.3, calibration=text, dry_run=True)
    with pytest.raises(UsageError, match="--allow-requantize"):
        run_export(wire)
    assert run_export(replace(wire, allow_requantize=True)).bytes > 0


def test_analyze_and_prune_grid_take_a_gguf(model: Path, gguf: Path, text: Path, scratch: Path) -> None:
    ours, theirs = (analyze(source).json()["weights"] for source in (gguf, model))
    assert ours == theirs
    scoring = ScoringOptions(ctx=64, max_chunks=2)
    with PruneGrid(GridRequest(gguf, "gguf-q8", "magnitude", None, text, scoring)) as grid:
        level = grid.measure(0.1)
    assert 0 < level.agreement <= 1
    assert list(scratch.iterdir()) == []


def test_an_architecture_that_cannot_be_read_back_says_so_and_leaves_nothing(
    gguf: Path, text: Path, tmp_path: Path, scratch: Path
) -> None:
    content = gguf.read_bytes().replace(
        b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama",
        b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00bloom",
    )
    content = content.replace(b"\x00\x00llama.", b"\x00\x00bloom.")
    (tmp_path / "bloom.gguf").write_bytes(content)
    request = ExportRequest(
        tmp_path / "bloom.gguf", "gguf-q8", passes=("gptq",), calibration=text, output=tmp_path / "x.gguf"
    )
    with pytest.raises(UnsupportedModelError, match="'bloom': edgepack has no family"):
        run_export(request)
    assert list(scratch.iterdir()) == []


def test_an_adapter_cannot_be_calibrated_on_through_a_gguf(gguf: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="--adapter and --calibration of a GGUF"):
        check_request(ExportRequest(gguf, "gguf-q8", adapter="there", calibration=text))
