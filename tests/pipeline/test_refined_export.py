"""`export --refine` from request to file: budgets, gates, archives, what is refused, and the same bytes again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from wire_models import text_beside, write_small_llama  # noqa: E402

import edgepack  # noqa: E402
from edgepack.errors import UsageError  # noqa: E402
from edgepack.export.refine import matrices as refined_matrices  # noqa: E402
from edgepack.gguf import keys  # noqa: E402
from edgepack.gguf.reader import read_header  # noqa: E402
from edgepack.pipeline.accepted import check_request  # noqa: E402
from edgepack.pipeline.export import run_export  # noqa: E402
from edgepack.pipeline.makers.refined_default import decided  # noqa: E402
from edgepack.pipeline.request import ExportRequest  # noqa: E402
from edgepack.quant.calibration import curvature  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

FEW = {"sequences": 3, "length": 48, "threads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("refined") / "m", intermediate_size=256, num_hidden_layers=3)


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    return text_beside(model, 4000)


def refined(model: Path, calibration: Path, output: Path, **options: Any) -> Any:
    return run_export(ExportRequest(model, calibration=calibration, output=output, refine=True, **{**FEW, **options}))


def stock_bytes(model: Path, target: str) -> int:
    return run_export(ExportRequest(model, target, dry_run=True)).bytes


def test_calibration_refines_by_default_within_the_target_s_own_bytes(model: Path, text: Path, tmp_path: Path) -> None:
    request = ExportRequest(model, "gguf-q4km", calibration=text, output=tmp_path / "x.gguf", **FEW)
    result = run_export(request)
    most = stock_bytes(model, "gguf-q4km")
    assert most * 0.998 <= result.bytes <= most
    metadata = read_header(result.output).metadata
    assert metadata[keys.REFINE_BUDGET].value == most
    assert metadata[keys.REFINE_CALIBRATION_TOKENS].value == 3 * 48
    assert result.as_json()["refined"]["predicted_kl"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_the_default_name_says_that_it_is_refined(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = run_export(ExportRequest(model, "gguf-q4km", calibration=text, dry_run=True, **FEW))
    assert planned.output.name.endswith("Q4_K_M_REFINED.gguf")
    assert any(line.startswith("refining takes about") for line in planned.outline.limits)
    assert planned.bytes == stock_bytes(model, "gguf-q4km")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"max_size": 500_000}, {"bits": 9.0}, {"target": "gguf-q8", "max_size": 480_000}])
def test_sizes_and_bits_are_met_and_never_exceeded(
    options: dict[str, Any], model: Path, text: Path, tmp_path: Path
) -> None:
    result = refined(model, text, tmp_path / "x.gguf", **options)
    weights = sum(info.rows * info.shape[-1] for info in read_header(result.output).tensors)
    most = options.get("max_size") or int(options["bits"] * weights / 8)
    assert 0.998 * most <= result.bytes <= most


def test_an_archive_of_a_size_is_met_within_half_a_percent(model: Path, text: Path, tmp_path: Path) -> None:
    result = refined(model, text, tmp_path / "x.edgepack", max_size=420_000)
    assert 420_000 * 0.995 <= result.bytes <= 420_000
    assert edgepack.verify(result.output).ok


def test_a_gate_finds_the_least_bytes_that_clear_it(model: Path, text: Path, tmp_path: Path) -> None:
    result = refined(model, text, tmp_path / "x.gguf", max_kl=0.2, text=text, chunks=2)
    assert any(rung.passed and rung.bytes == result.bytes for rung in result.tried)
    assert result.bytes < stock_bytes(model, "gguf-q8")


def test_tensors_that_are_kept_keep_their_type(model: Path, text: Path, tmp_path: Path) -> None:
    result = refined(model, text, tmp_path / "x.gguf", target="gguf-q4km", tensor_types=("ffn_down=q6_k",))
    kinds = {info.name: info.type.name for info in read_header(result.output).tensors}
    assert {kind for name, kind in kinds.items() if "ffn_down" in name} == {"Q6_K"}


def test_layers_pruned_in_front_are_gone_and_the_others_refined(model: Path, text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[calibration]\nsequences = 3\nlength = 48\n[[pass]]\nname = "prune"\nmethod = "layers"\nlayers = 1\n'
    )
    request = ExportRequest(model, "gguf-q4km", recipe=recipe, calibration=text, output=tmp_path / "x.gguf")
    result = run_export(request)
    header = read_header(result.output)
    assert header.metadata["llama.block_count"].value == 2
    assert keys.REFINE_BUDGET in header.metadata
    assert keys.RECIPE in header.metadata


def test_it_is_made_again_from_its_derivation(model: Path, text: Path, tmp_path: Path) -> None:
    made = refined(model, text, tmp_path / "x.edgepack", max_size=420_000)
    found = edgepack.check_provenance(made.output, model, calibration=text)
    assert found.differences == ()
    assert found.same


class KilledError(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize("where", ["curvature", "rounding"])
def test_an_export_killed_on_the_way_resumes_to_the_same_bytes(
    where: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"target": "gguf-q4km", "resume": True}
    whole = refined(model, text, tmp_path / "whole.gguf", **options).output.read_bytes()
    output, calls = tmp_path / "killed.gguf", 0
    place, name = (curvature._Run, "tables") if where == "curvature" else (refined_matrices, "refine_matrix")
    real = getattr(place, name)

    def fused(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if where == "curvature" or calls == 60:
            raise KilledError
        return real(*arguments, **keywords)

    monkeypatch.setattr(place, name, fused)
    with pytest.raises(KilledError):
        refined(model, text, output, **options)
    assert (tmp_path / f".edgepack-refine-{output.name}").is_dir()
    monkeypatch.undo()
    assert refined(model, text, output, **options).output.read_bytes() == whole
    assert not (tmp_path / f".edgepack-refine-{output.name}").exists()


def test_a_size_that_nothing_meets_is_refused_and_nothing_is_left(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the least that this model takes, got 200000"):
        refined(model, text, tmp_path / "x.gguf", max_size=200_000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"target": "gguf-f16", "refine": True}, "expected a target between"),
        ({"target": "gguf-iq2xs", "refine": True}, "expected a target between"),
        ({"target": "gguf-q4km", "refine": True, "imatrix": "x.dat"}, "--refine and --imatrix"),
        ({"target": "gguf-q4km", "refine": True, "quantizer": "ggml"}, "--quantizer ggml"),
        ({"target": "gguf-q4km", "bits": 4.0}, "--bits: expected --target wire, or --refine"),
        ({"target": "gguf-q4km", "for_device": "gtx-1660"}, "--for-device: expected --target wire, or --refine"),
        ({"refine": True, "max_size": 1000, "bits": 4.0}, "--max-size and --bits"),
        ({"refine": True, "min_agreement": 0.9, "bits": 4.0}, "expected no --bits"),
        ({"target": "wire", "refine": True, "bits": 4.0}, "--refine: expected a gguf target"),
        ({"refine": True}, "expected --target"),
    ],
)
def test_options_that_contradict_refinement_are_refused(options: dict[str, Any], refusal: str, model: Path) -> None:
    with pytest.raises(UsageError, match=refusal):
        check_request(ExportRequest(model, **options))


def test_a_pass_that_rounds_by_itself_turns_the_default_off_and_is_refused_beside_it(model: Path, text: Path) -> None:
    request = ExportRequest(model, "gguf-q4km", passes=("gptq",), calibration=text)
    assert not decided(request).refine
    with pytest.raises(UsageError, match="pass 'gptq' rounds"):
        decided(ExportRequest(model, "gguf-q4km", passes=("gptq",), calibration=text, refine=True))


def test_bytes_that_only_refinement_meets_are_refused_behind_a_pass_that_it_would_undo(model: Path, text: Path) -> None:
    request = ExportRequest(model, "gguf-q4km", passes=("prune:sparsity=0.3",), calibration=text, bits=5.0)
    check_request(request)
    with pytest.raises(UsageError, match="--bits: expected a file that is refined, but passes"):
        decided(request)


def test_a_text_of_one_line_is_told_and_not_refined_by_default(model: Path, tmp_path: Path) -> None:
    text, told = tmp_path / "t.txt", list[str]()
    text.write_text("one line\n" * 4000)
    request = ExportRequest(model, "gguf-q4km", calibration=text, tell=told.append, **FEW)
    assert decided(request).refine is False
    assert told[0].startswith("not refined, as by default with --calibration: calibration text")


def test_smoothing_goes_in_front_and_is_refined_by_default(model: Path, text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[calibration]\nsequences = 3\nlength = 48\n[[pass]]\nname = "smooth"\ntokens = 64\nsteps = 4\n')
    request = ExportRequest(model, "gguf-q5km", recipe=recipe, calibration=text, output=tmp_path / "x.gguf")
    metadata = read_header(run_export(request).output).metadata
    assert metadata["edgepack.pass.0.name"].value == "smooth"
    assert keys.REFINE_BUDGET in metadata


def test_refining_smooths_first_unless_told_not_to(model: Path, text: Path, tmp_path: Path) -> None:
    request = ExportRequest(model, "gguf-q4km", calibration=text, **FEW)
    assert decided(request).smooth
    assert not decided(ExportRequest(model, "gguf-q4km", calibration=text, smooth=False, **FEW)).smooth
    assert not decided(ExportRequest(model, "gguf-q4km", refine=True, **FEW)).smooth  # own samples, no text
    assert not decided(ExportRequest(model, "gguf-q4km", calibration=text, refine=False, **FEW)).smooth
    result = run_export(ExportRequest(model, "gguf-q4km", calibration=text, output=tmp_path / "x.gguf", **FEW))
    metadata = read_header(result.output).metadata
    assert 'name = "smooth"' in metadata[keys.RECIPE].value
    assert metadata[keys.REFINE_PASSES_FOR].value == "gguf-q4km"
    assert (
        result.outline.source_bytes == run_export(ExportRequest(model, "gguf-q4km", dry_run=True)).outline.source_bytes
    )


def test_what_was_folded_already_is_not_smoothed_again(model: Path, text: Path) -> None:
    request = ExportRequest(model, "gguf-q4km", passes=("smooth:steps=4",), calibration=text, **FEW)
    found = decided(request)
    assert found.refine
    assert not found.smooth


def test_an_adapter_beside_the_file_keeps_the_scales_that_it_was_made_for(
    model: Path, text: Path, tmp_path: Path
) -> None:
    request = ExportRequest(
        model, "gguf-q4km", calibration=text, adapter=tmp_path / "a", adapter_mode="separate", refine=True, **FEW
    )
    assert not decided(request).smooth


def test_smoothing_alone_is_a_pass_and_no_option(model: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="--smooth: expected --refine"):
        check_request(ExportRequest(model, "gguf-q4km", smooth=True))
