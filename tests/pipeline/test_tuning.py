"""`tune_gguf` on a small Llama: never worse on held-out text, resumable, the same types and sizes, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from wire_models import varied_text, write_small_llama

from edgepack.errors import CalibrationError, CheckpointError, NumericError, UsageError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import plan_export
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.pipeline.tuning.tune import tune_gguf
from edgepack.quant.calibration.blocks import whole_model
from edgepack.quant.calibration.text import text_sequences
from edgepack.quant.tuning.loop import Tuning
from edgepack.quant.tuning.parts import PARTS
from edgepack.quant.tuning.settings import TuningSettings
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgepack.model import Checkpoint
    from edgepack.pipeline.tuning.tune import Tuned

EVERY = frozenset(PARTS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_small_llama(tmp_path_factory.mktemp("small") / "model"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Rows that are whole blocks of 256."""
    return open_checkpoint(write_small_llama(tmp_path_factory.mktemp("wide") / "model", hidden_size=256, head_dim=64))


def exported(checkpoint: Checkpoint, target: str, folder: Path) -> Path:
    path = folder / f"{target}.gguf"
    write_gguf(plan_export(map_checkpoint(checkpoint), find_target(f"gguf-{target}")), path)
    return path


@pytest.fixture(scope="module")
def quantised(wide: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(wide, "q2k", tmp_path_factory.mktemp("quantised"))


@pytest.fixture(scope="module")
def tokens(wide: Checkpoint) -> NDArray[np.int64]:
    return text_sequences(wide, varied_text(600), length=24, sequences=16)


def some_tokens(count: int = 6, length: int = 24) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(3, 500, (count, length)).astype(np.int64)


def tuned(
    path: Path, checkpoint: Checkpoint, output: Path, tokens: NDArray[np.int64] | None = None, **changes: Any
) -> Tuned:
    resume, notes = changes.pop("resume", False), changes.pop("notes", [])
    settings = TuningSettings(**{"steps": 6, "keep_seconds": 0.0, "parts": EVERY, "top": 64, **changes})
    tokens = some_tokens() if tokens is None else tokens
    return tune_gguf(path, checkpoint, tokens, settings, output, resume=resume, note=notes.append)


def plain_divergence(first: Any, second: Any, tokens: NDArray[np.int64]) -> float:
    """Between two models of transformers, over whole distributions."""
    import torch

    with torch.no_grad():
        ours, theirs = (model(input_ids=torch.from_numpy(tokens)).logits.log_softmax(-1) for model in (first, second))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def test_a_tuned_file_is_nearer_to_its_original_and_of_the_same_types(
    wide: Checkpoint, quantised: Path, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    output, notes = tmp_path / "out.gguf", []
    found = tuned(quantised, wide, output, tokens, steps=12, notes=notes)
    assert not found.dropped
    assert found.after < found.before
    before, after = read_header(quantised), read_header(output)
    assert after.tensors == before.tensors
    own = {key: value for key, value in after.metadata.items() if not key.startswith(keys.TUNING)}
    assert own == before.metadata
    assert after.get(keys.TUNING_STEPS) == 12
    assert after.get(keys.TUNING_KL_AFTER) == pytest.approx(found.after)
    assert found.curve[0] == (0, found.before)
    assert [line for line in notes if "left as they are" in line] == []
    # The same by transformers alone, with the weights that ggml reads from both files.
    from edgepack.export.backwards.checkpoint import opened_source

    original = whole_model(wide)
    with opened_source(quantised) as one, opened_source(output) as other:
        worse, better = (plain_divergence(original, whole_model(each), tokens) for each in (one, other))
    assert better < worse
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf"]


def test_no_steps_give_the_same_bytes(wide: Checkpoint, quantised: Path, tmp_path: Path) -> None:
    found = tuned(quantised, wide, tmp_path / "out.gguf", steps=0)
    assert found.dropped
    assert (tmp_path / "out.gguf").read_bytes() == quantised.read_bytes()


def test_a_hostile_rate_is_dropped_and_said(wide: Checkpoint, quantised: Path, tmp_path: Path) -> None:
    found = tuned(quantised, wide, tmp_path / "out.gguf", rate=30.0, steps=40)
    assert found.dropped
    assert found.after == found.before
    assert found.steps < 40, "the stop rule ends it"
    assert "the tuning is dropped" in found.notes[0]
    assert (tmp_path / "out.gguf").read_bytes() == quantised.read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    wide: Checkpoint, quantised: Path, tokens: NDArray[np.int64], tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tuned(quantised, wide, tmp_path / name, tokens, seed=seed, steps=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_run_that_is_resumed_equals_one_that_was_not_interrupted(
    wide: Checkpoint, quantised: Path, tokens: NDArray[np.int64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuned(quantised, wide, tmp_path / "whole.gguf", tokens)
    assert not whole.dropped
    original = Tuning._gradients

    def interrupted(self: Tuning, step: int) -> float:
        if step == 4:
            raise KeyboardInterrupt
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "_gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuned(quantised, wide, tmp_path / "parts.gguf", tokens)
    seen: list[int] = []

    def counted(self: Tuning, step: int) -> float:
        seen.append(step)
        return original(self, step)

    monkeypatch.setattr(Tuning, "_gradients", counted)
    parts = tuned(quantised, wide, tmp_path / "parts.gguf", tokens, resume=True)
    assert seen == [3, 4, 5], "what was done is not done again"
    assert parts.curve == whole.curve
    assert (tmp_path / "parts.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_divergence_that_is_not_a_number_names_the_step_and_keeps_the_state_before(
    wide: Checkpoint, quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Tuning._divergence
    with monkeypatch.context() as patch:
        calls: list[int] = []

        def broken(self: Tuning, index: int) -> Any:
            calls.append(index)
            return original(self, index) * (float("nan") if len(calls) == 6 else 1.0)

        patch.setattr(Tuning, "_divergence", broken)
        with pytest.raises(NumericError, match=r"got nan at step 4: the state after step 2 is kept.*--rate lower"):
            tuned(quantised, wide, tmp_path / "out.gguf", steps=8, patience=8)
    assert not (tmp_path / "out.gguf").exists()
    found = tuned(quantised, wide, tmp_path / "out.gguf", steps=8, patience=8, rate=0.5, resume=True)
    assert [step for step, _ in found.curve] == [0, 2, 4, 6, 8]


def test_minutes_become_a_number_of_steps_and_the_same_number_gives_the_same_bytes(
    wide: Checkpoint, quantised: Path, tmp_path: Path
) -> None:
    found = tuned(quantised, wide, tmp_path / "minutes.gguf", steps=None, minutes=0.02)
    assert found.steps >= 1
    again = tuned(quantised, wide, tmp_path / "steps.gguf", steps=found.planned)
    assert again.curve == found.curve


@pytest.mark.parametrize(("model", "target"), [("small", "q2k"), ("wide", "q2k"), ("wide", "q4km"), ("small", "q8")])
def test_types_and_ragged_rows_keep_their_size(
    model: str, target: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(model)
    path = exported(checkpoint, target, tmp_path)
    found = tuned(path, checkpoint, tmp_path / "out.gguf", steps=2, judgements=1)
    assert read_header(tmp_path / "out.gguf").tensors == read_header(path).tensors
    assert found.after <= found.before


def test_what_cannot_be_tuned_is_left_and_said(small: Checkpoint, tmp_path: Path) -> None:
    path, notes = exported(small, "q8", tmp_path), []
    found = tuned(path, small, tmp_path / "out.gguf", steps=1, parts=frozenset({"rows"}), notes=notes)
    assert found.left == {"F32": 5}
    assert any("left as they are: 5 tensors of F32" in line for line in notes)
    whole = exported(small, "f16", tmp_path)
    with pytest.raises(UsageError, match="has nothing that can be tuned, only .* tensors of F16"):
        tuned(whole, small, tmp_path / "none.gguf", parts=frozenset({"rows"}))


def test_a_file_of_the_wire_keeps_its_integers(wide: Checkpoint, quantised: Path, tmp_path: Path) -> None:
    from edgepack.gguf.types import string
    from edgepack.pipeline.tuning.written import write_tuned

    header, path, notes = read_header(quantised), tmp_path / "wire.gguf", []
    write_tuned(quantised, header, {}, {**header.metadata, keys.WIRE_HOST: string("q4_0")}, path)
    tuned(path, wide, tmp_path / "out.gguf", notes=notes)
    assert any("rows and vectors are moved" in line for line in notes)
    assert read_header(tmp_path / "out.gguf").get(keys.TUNING_PARTS) in ("vectors rows", None)


def test_a_file_of_another_model_is_refused(
    small: Checkpoint, wide: Checkpoint, quantised: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="not made of .* tensor 'token_embd.weight': expected"):
        tuned(quantised, small, tmp_path / "out.gguf")
    more = replace(wide, config={**wide.config, "rope_theta": 7.0, "rope_parameters": None})
    with pytest.raises(CheckpointError, match="'llama.rope.freq_base' differs"):
        tuned(quantised, more, tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_text_for_one_sequence_is_too_short(wide: Checkpoint, quantised: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="at least 2 sequences, one of them held out, got 1"):
        tuned(quantised, wide, tmp_path / "out.gguf", tokens=some_tokens(1))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"steps": None}, "either a number of steps or of minutes"),
        ({"minutes": 1.0}, "either a number of steps or of minutes"),
        ({"steps": -1}, "0 to 1000000 steps, got -1"),
        ({"steps": None, "minutes": float("nan")}, "minutes above 0"),
        ({"rate": 0.0}, "rate above 0"),
        ({"parts": frozenset({"all"})}, "got 'all'"),
        ({"parts": frozenset()}, "got none"),
        ({"held_out": 1.0}, "share between 0 and 1"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        TuningSettings(**{"steps": 1, **changes})


def test_a_device_that_is_not_there_is_refused(wide: Checkpoint, quantised: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device 'nonsense'"):
        tuned(quantised, wide, tmp_path / "out.gguf", device="nonsense")
