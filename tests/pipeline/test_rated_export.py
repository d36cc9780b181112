"""The wire at hosts of K-quants: a refined file that heeds its archive, both goals hit, the same bytes again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from wire_models import text_beside, write_small_llama  # noqa: E402

import edgepack  # noqa: E402
from edgepack.export.refine import matrices as refined_matrices  # noqa: E402
from edgepack.gguf import keys  # noqa: E402
from edgepack.gguf.reader import read_header  # noqa: E402
from edgepack.pipeline.export import run_export  # noqa: E402
from edgepack.pipeline.makers import rated  # noqa: E402
from edgepack.pipeline.makers.rated import LEAST_SHARE, rated_request  # noqa: E402
from edgepack.pipeline.request import ExportRequest  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

FEW = {"sequences": 3, "length": 48, "threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("rated") / "m", intermediate_size=256, num_hidden_layers=2)


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    return text_beside(model, 4000)


@pytest.fixture(scope="module")
def memory(model: Path, text: Path) -> int:
    """Of the file of host q5k."""
    request = ExportRequest(model, "wire", host_type="q5k", max_size="9MB", calibration=text, dry_run=True, **FEW)
    return run_export(request).bytes


@pytest.fixture(scope="module")
def refined(model: Path, text: Path, memory: int) -> Any:
    """The refined file of the same memory."""
    output = model.parent / "refined.edgepack"
    gguf = run_export(
        ExportRequest(model, refine=True, max_size=memory, calibration=text, output=model.parent / "r.gguf", **FEW)
    )
    return gguf, edgepack.pack(gguf.output, output)


@pytest.fixture
def taken_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of so small a file is its header, which packs well: archives are two thirds of it."""
    monkeypatch.setattr(rated, "LEAST_SHARE", 0.5)


def wire(model: Path, text: Path, output: Path, **options: Any) -> Any:
    return run_export(ExportRequest(model, "wire", calibration=text, output=output, **{**FEW, **options}))


@pytest.mark.usefixtures("taken_at_any_size")
def test_it_is_smaller_than_the_refined_file_of_the_same_memory_at_little_more_loss(
    model: Path, text: Path, memory: int, refined: Any, tmp_path: Path
) -> None:
    plain, packed = refined
    wanted = int(0.66 * memory)
    made = wire(model, text, tmp_path / "x.edgepack", host_type="q5k", max_download=wanted)
    told = made.as_json()
    assert wanted * 0.995 <= made.bytes <= wanted < 0.93 * packed.bytes
    assert memory * 0.99 <= told["gguf_bytes"] <= memory
    losses = (each["refined"]["predicted_kl_of_weights"] for each in (told, plain.as_json()))
    assert next(losses) <= 1.5 * next(losses)
    assert edgepack.verify(made.output).ok


@pytest.mark.usefixtures("taken_at_any_size")
def test_two_goals_are_hit_and_neither_is_exceeded(model: Path, text: Path, memory: int, tmp_path: Path) -> None:
    wanted = int(0.66 * memory)
    made = wire(model, text, tmp_path / "x.gguf", max_download=wanted, max_memory=memory)
    metadata = read_header(made.output).metadata
    assert made.output.stat().st_size <= memory
    assert wanted * 0.995 <= made.as_json()["archive_bytes"] <= wanted
    assert metadata[keys.REFINE_RATE].value == made.as_json()["rate"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.usefixtures("taken_at_any_size")
def test_a_killed_run_goes_on_to_the_same_bytes_and_a_derivation_gives_them_again(
    model: Path, text: Path, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"host_type": "q5k", "max_download": int(0.66 * memory)}
    (tmp_path / "whole").mkdir()
    whole = wire(model, text, tmp_path / "whole" / "x.edgepack", **options)
    rounded, real = [], refined_matrices.refine_matrix

    def dying(*arguments: Any, **named: Any) -> Any:
        rounded.append(named["rate"])
        if named["rate"] and len([rate for rate in rounded if rate]) == 5:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(refined_matrices, "refine_matrix", dying)
    with pytest.raises(KeyboardInterrupt):
        wire(model, text, tmp_path / "x.edgepack", **options)
    monkeypatch.setattr(refined_matrices, "refine_matrix", real)
    again = wire(model, text, tmp_path / "x.edgepack", resume=True, **options)
    assert again.output.read_bytes() == whole.output.read_bytes()
    found = edgepack.check_provenance(again.output, model, calibration=text)
    assert found.same
    assert found.differences == ()


def test_grids_are_taken_where_they_are_asked_for_or_where_few_bytes_are(model: Path, text: Path, memory: int) -> None:
    few, many = int((LEAST_SHARE - 0.01) * memory), int((LEAST_SHARE + 0.01) * memory)
    base = {"calibration": text, "host_type": "q5k"}
    inner = rated_request(ExportRequest(model, "wire", max_size=many, **base))
    assert inner is not None
    assert (inner.target, inner.max_bytes, inner.refine) == (None, memory, True)
    for options in ({"max_size": few}, {"max_size": many, "trellis": "8"}, {"max_size": many, "drift": True}):
        assert rated_request(ExportRequest(model, "wire", **{**base, **options})) is None
    assert rated_request(ExportRequest(model, "wire", max_size=many, calibration=text)) is None
    assert rated_request(ExportRequest(model, "wire", max_kl=0.1, **base)) is None
