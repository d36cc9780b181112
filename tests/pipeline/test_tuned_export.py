"""`export --refine --tune`: one command, one file, the same bytes again, and a kill in either stage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from wire_models import text_beside, varied_text, write_small_llama  # noqa: E402

import edgepack  # noqa: E402
from edgepack.errors import CalibrationError, UsageError  # noqa: E402
from edgepack.gguf import keys  # noqa: E402
from edgepack.gguf.reader import read_header  # noqa: E402
from edgepack.packaging.derivation import read_derivation  # noqa: E402
from edgepack.packaging.trust.policy import ANYONE  # noqa: E402
from edgepack.pipeline.accepted import check_request  # noqa: E402
from edgepack.pipeline.export import run_export  # noqa: E402
from edgepack.pipeline.request import ExportRequest  # noqa: E402
from edgepack.quant.tuning import loop  # noqa: E402
from edgepack.quant.tuning.kept_state import KeptState  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

FEW = {"sequences": 2, "length": 32, "threads": 1, "tune_steps": 4, "smooth": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("tuned") / "m")


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    return text_beside(model, 900)


def tuned(model: Path, text: Path, output: Path, **options: Any) -> Any:
    return run_export(
        ExportRequest(model, "gguf-q4km", calibration=text, output=output, refine=True, tune=True, **{**FEW, **options})
    )


@pytest.fixture(scope="module")
def whole(model: Path, text: Path) -> Any:
    return tuned(model, text, model.parent / "whole.gguf", provenance=True, smooth=True)


def test_one_command_refines_and_tunes_within_the_target_s_bytes(model: Path, whole: Any) -> None:
    metadata, most = (
        read_header(whole.output).metadata,
        run_export(ExportRequest(model, "gguf-q4km", dry_run=True)).bytes,
    )
    assert whole.bytes <= most
    assert metadata[keys.REFINE_BUDGET].value == most
    assert metadata[keys.TUNING_STEPS].value == 4
    told = whole.as_json()["tuned"]
    assert told["held_out_kl"]["after"] <= told["held_out_kl"]["before"]
    assert metadata[keys.TUNING_KL_AFTER].value == pytest.approx(told["held_out_kl"]["after"])
    assert told["dropped"] == (metadata[keys.TUNING_BEST_STEP].value == 0)
    assert not [path for path in whole.output.parent.iterdir() if path.name.startswith(".")]


def test_it_is_made_again_from_its_derivation_whatever_the_minutes_were(
    model: Path, text: Path, tmp_path: Path, whole: Any
) -> None:
    said = read_derivation(whole.output, ANYONE).parameters
    assert (said["tune"], said["tune_steps"]) == (True, 4)
    assert edgepack.check_provenance(whole.output, model, calibration=text).same
    timed = tuned(model, text, tmp_path / "x.gguf", tune_steps=None, tune_minutes=0.001, provenance=True)
    said = read_derivation(timed.output, ANYONE).parameters
    assert said["tune_steps"] == read_header(timed.output).metadata[keys.TUNING_STEPS].value
    assert "tune_minutes" not in said


class KilledError(BaseException):
    """Stands for a signal."""


def test_a_kill_while_tuning_goes_on_with_tuning(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, keeps, steps, killed_at = loop.Tuning._gradients, KeptState.keep, list[int](), 99

    def counted(self: Any, step: int) -> float:
        steps.append(step)
        if len(steps) == killed_at:
            raise KilledError
        return real(self, step)

    def keep_every(self: Any, state: Any, *, now: bool) -> None:
        self._seconds = 0.0
        keeps(self, state, now=now)

    monkeypatch.setattr(KeptState, "keep", keep_every)
    monkeypatch.setattr(loop.Tuning, "_gradients", counted)
    whole, run = tuned(model, text, tmp_path / "whole.gguf", tune_steps=8).output.read_bytes(), steps.copy()
    output, killed_at = tmp_path / "killed.gguf", 4
    steps.clear()
    with pytest.raises(KilledError):
        tuned(model, text, output, tune_steps=8)
    assert not output.exists()
    assert (tmp_path / f".edgepack-refine-{output.name}" / "tuning" / "state.pt").is_file()
    steps.clear()
    killed_at = 99
    assert tuned(model, text, output, tune_steps=8, resume=True).output.read_bytes() == whole
    assert steps == run[2:]  # from the state before the step that was killed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.gguf", "whole.gguf"]


def test_a_tuning_that_helps_nobody_is_dropped_and_said(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_export(
        ExportRequest(model, "gguf-q4km", calibration=text, output=tmp_path / "plain.gguf", refine=True,
                      **{name: value for name, value in FEW.items() if not name.startswith("tune")})
    )  # fmt: skip
    monkeypatch.setattr(loop.Tuning, "_gradients", _not_a_number)
    made = tuned(model, text, tmp_path / "x.gguf")
    assert made.as_json()["tuned"]["dropped"]
    notes = " ".join(made.made.notes)
    assert "expected a finite divergence, got nan at step 1" in notes
    assert "the tuning is dropped" in notes or "no step was run" in notes
    ours, theirs = (_tensors(each.output) for each in (made, plain))
    assert ours == theirs


def _not_a_number(self: Any, step: int) -> float:
    raise self._not_finite("divergence", float("nan"), step)


def _tensors(path: Path) -> list[bytes]:
    header, content = read_header(path), path.read_bytes()
    starts = [(header.data_start + info.offset, info.nbytes) for info in header.tensors]
    return [content[start : start + size] for start, size in starts]


def test_a_dry_run_tells_how_long_tuning_takes(model: Path, text: Path, tmp_path: Path) -> None:
    planned = tuned(model, text, tmp_path / "x.gguf", dry_run=True, tune_steps=None, tune_minutes=3)
    assert any(re.search("tuning 3 min", line) for line in planned.outline.limits)
    planned = tuned(model, text, tmp_path / "x.gguf", dry_run=True, tune_steps=1000)
    assert any("tuning " in line for line in planned.outline.limits)
    assert not list(tmp_path.iterdir())


def test_a_text_too_short_to_tune_on_is_refused_before_anything_is_refined(model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(varied_text(100))
    with pytest.raises(CalibrationError, match="tune: expected text for at least 2 sequences"):
        tuned(model, short, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"target": "gguf-q4km", "tune": True}, "--tune: expected --refine with it"),
        ({"target": "gguf-f16", "tune": True, "calibration": "t"}, "--tune: expected --refine with it"),
        ({"target": "gguf-q4km", "tune_steps": 3}, "expected --tune with them"),
        ({"target": "gguf-q4km", "tune_moves": "gumbel"}, "expected --tune with them"),
        ({"target": "gguf-q4km", "refine": True, "tune": True, "tune_steps": 3, "tune_minutes": 1.0}, "got both"),
        ({"target": "gguf-q4km", "refine": True, "tune": True, "tune_minutes": -1.0}, "expected more than 0"),
        ({"target": "gguf-q4km", "refine": True, "tune": True, "shard_size": 1000}, "--tune and --shard-size"),
        ({"refine": True, "tune": True, "min_agreement": 0.9}, "would tune every try"),
        ({"refine": True, "tune": True, "max_size": 1000, "pack": True}, "would tune every try"),
        ({"target": "wire", "bits": 4.0, "tune": True}, "--tune: expected a gguf target"),
        (
            {"target": "gguf-q4km", "refine": True, "tune": True, "adapter": "a", "adapter_mode": "separate"},
            "--tune and --adapter-mode separate",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_a_line(options: dict[str, Any], refusal: str, model: Path) -> None:
    with pytest.raises(UsageError, match=refusal):
        check_request(ExportRequest(model, **options))
