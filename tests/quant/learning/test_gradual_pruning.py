"""Pruning while the model learns: the schedule, masks that hold, zeros in the file, a run that goes on, bad settings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.quant.conftest import BOOKS
from tests.quant.learning.test_loop import Killed

from edgepack.errors import CalibrationError, RecipeError
from edgepack.export.checkpoint import open_checkpoint
from edgepack.export.gguf_file import write_gguf
from edgepack.export.gguf_source import map_gguf
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import plan_export
from edgepack.model import read_tensor
from edgepack.quant.passes.prune.gradual import Masks, Rise
from edgepack.quant.passes.prune.masks import Pattern
from edgepack.quant.passes.prune.weights import PruneSettings
from edgepack.quant.passes.recipe import parse_recipe
from edgepack.quant.passes.registry import find_pass
from edgepack.quant.passes.run import PassRun
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.model import Checkpoint
    from edgepack.quant.learning.text_blocks import TokenBlocks

GRADUAL = 'name = "prune"\nschedule = "cubic"\nsparsity = 0.5\nsteps = 12\nevery = 3\nbatch = 4\nrate = 1e-3\n'


def settings_of(text: str) -> Any:
    return parse_recipe(f"[[pass]]\n{text}").passes[0].settings


def run_pass(tiny: Checkpoint, blocks: TokenBlocks, folder: Path, text: str = GRADUAL, **others: Any) -> Any:
    return find_pass("prune").run(tiny, settings_of(text), PassRun(folder, tokens=blocks.tokens, **others))


def linears(checkpoint: Checkpoint) -> list[str]:
    return [name for name in checkpoint.tensors.specs if "_proj" in name]


@pytest.fixture(scope="module")
def pruned_books(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The bundled model at 65 %, after two steps of learning."""
    folder, tokens = tmp_path_factory.mktemp("books"), np.random.default_rng(0).integers(3, 4000, (6, 16))
    text = 'name = "prune"\nschedule = "cubic"\nsparsity = 0.65\nsteps = 2\nevery = 1\nbatch = 2\n'
    outcome: Checkpoint = (
        find_pass("prune").run(open_checkpoint(BOOKS), settings_of(text), PassRun(folder, tokens=tokens)).checkpoint
    )
    return outcome


def test_sparsity_rises_along_the_cube() -> None:
    rise = Rise(100, 1000)
    assert rise.moments == list(range(100, 1001, 100))
    shares = [rise.share(step) for step in (0, 250, 500, 1000, 1500)]
    assert shares == pytest.approx([0, 1 - 0.75**3, 1 - 0.5**3, 1, 1])
    assert Rise(100, 0).moments == [0]  # all at once, then learning
    assert Rise(100, 0).share(0) == 1
    assert Rise(100, 50).moments == [50]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_every_matrix_is_pruned_to_the_level_and_the_model_has_learnt(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, method: str
) -> None:
    outcome = run_pass(tiny, blocks, tmp_path, f'{GRADUAL}method = "{method}"\n')
    for name in linears(tiny):
        found = read_tensor(outcome.checkpoint.tensors, name)
        assert np.mean(found == 0) == pytest.approx(0.5, abs=0.07), name  # SparseGPT: blocks of columns
        kept = found != 0
        assert not np.array_equal(found[kept], read_tensor(tiny.tensors, name)[kept]), name
    assert outcome.figures["steps_run"] == 12
    assert outcome.figures["zeros"] == sum(
        int((read_tensor(outcome.checkpoint.tensors, n) == 0).sum()) for n in linears(tiny)
    )
    assert set(linears(tiny)) < set(outcome.checkpoint.tensors.replaced)  # norms learn too


def test_no_steps_leave_the_checkpoint(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    outcome = run_pass(tiny, blocks, tmp_path, 'name = "prune"\nschedule = "cubic"\nsparsity = 0.5\nsteps = 0\n')
    assert outcome.checkpoint is tiny
    assert outcome.notes == ("prune: 0 steps leave the model as it is",)


def test_zeros_never_come_back_between_masks(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []
    real = Masks.on_step_end

    def watched(self: Masks, arguments: Any, state: Any, control: Any, **keywords: Any) -> None:
        real(self, arguments, state, control, **keywords)
        seen.append((state.global_step, float(self.figures()["sparsity"])))

    monkeypatch.setattr(Masks, "on_step_end", watched)
    run_pass(tiny, blocks, tmp_path, f'{GRADUAL}method = "magnitude"\nramp = 0.5\n')
    expected = [(step, 0.5 * Rise(3, 6).share(step - 1 - (step - 1) % 3) if step > 3 else 0.0) for step in range(1, 13)]
    assert [step for step, _ in seen] == list(range(1, 13))
    np.testing.assert_allclose([each for _, each in seen], [each for _, each in expected], atol=0.01)


@pytest.mark.parametrize("target", ["gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8"])
def test_zeros_are_zeros_in_the_file(pruned_books: Checkpoint, tmp_path: Path, target: str) -> None:
    mapped = map_checkpoint(pruned_books)
    write_gguf(plan_export(mapped, find_target(target)), tmp_path / "m.gguf", threads=1)
    file, zeros, weights = map_gguf(tmp_path / "m.gguf", allow_requantize=True), 0, 0
    for name, rows in mapped.tensors.items():
        if len(rows.shape) == 2 and name.startswith("blk."):
            gone = rows.read(0, rows.shape[0]) == 0
            assert (file.tensors[name].read(0, rows.shape[0])[gone] == 0).all(), name
            zeros, weights = zeros + int(gone.sum()), weights + gone.size
    assert zeros / weights == pytest.approx(0.65, abs=0.01)


def test_a_killed_run_goes_on_to_the_same_weights(
    tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{GRADUAL}keep_every = 2\n"
    whole = run_pass(tiny, blocks, tmp_path / "whole", text, resumable=True)
    killed = Killed(9)  # after a checkpoint at 8, whose mask is that of step 6

    def kill(self: Masks, _arguments: Any, state: Any, *_others: Any, **_keywords: Any) -> None:
        killed.on_pre_optimizer_step(None, state)

    monkeypatch.setattr(Masks, "on_pre_optimizer_step", kill)
    with pytest.raises(KeyboardInterrupt):
        run_pass(tiny, blocks, tmp_path / "run", text, resumable=True)
    monkeypatch.undo()
    resumed = run_pass(tiny, blocks, tmp_path / "run", text, resumable=True)
    assert resumed.figures == whole.figures
    for name in tiny.tensors.specs:
        np.testing.assert_array_equal(
            read_tensor(resumed.checkpoint.tensors, name), read_tensor(whole.checkpoint.tensors, name), err_msg=name
        )


def test_two_of_four_holds_at_the_end(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path) -> None:
    outcome = run_pass(tiny, blocks, tmp_path, GRADUAL.replace("sparsity = 0.5", 'pattern = "2:4"'))
    for name in linears(tiny):
        groups = read_tensor(outcome.checkpoint.tensors, name).reshape(-1, 4)
        assert ((groups == 0).sum(1) == 2).all(), name


@pytest.mark.parametrize("recover", ["hidden", "text"])
def test_what_is_learnt_may_be_chosen(tiny: Checkpoint, blocks: TokenBlocks, tmp_path: Path, recover: str) -> None:
    outcome = run_pass(tiny, blocks, tmp_path, f'{GRADUAL}recover = "{recover}"\n')
    assert outcome.figures["steps_run"] == 12
    assert (tmp_path / "prune" / "answers").exists() == (recover == "hidden")


def test_recovery_gives_back_some_of_what_pruning_lost(books: Checkpoint, tmp_path: Path) -> None:
    from edgepack.quant.learning.lessons import open_lesson, recovery_objective
    from edgepack.quant.learning.models import trainable_model
    from edgepack.quant.learning.settings import LearningSettings
    from edgepack.quant.passes.prune.weights import prune_weights

    tokens = np.random.default_rng(0).integers(3, 4000, (40, 24))
    run = PassRun(tmp_path / "a", tokens=tokens)
    lesson = open_lesson(books, run, LearningSettings(30, batch=4), recovery_objective("logits", 6), "prune")
    once = prune_weights(books, PruneSettings("wanda", Pattern(0.65, compare="layer")), run).checkpoint
    text = 'name = "prune"\nschedule = "cubic"\nsparsity = 0.65\nsteps = 30\nevery = 5\nbatch = 4\nrate = 1e-3\n'
    gradual = find_pass("prune").run(books, settings_of(text), replace(run, folder=tmp_path / "b")).checkpoint
    losses = []
    for each in (once, gradual):
        model = trainable_model(each)
        batch = {key: value[None] for key, value in lesson.held_out[0].items()}
        losses.append(float(lesson.objective(model, batch).detach()))
    assert losses[1] < 0.85 * losses[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 10", r"pass\[0\]\.steps: belongs to schedule 'cubic', got schedule 'once'"),
        ("every = 10", r"pass\[0\]\.every: belongs to schedule 'cubic'"),
        ('schedule = "cubic"\nsteps = 10\nevery = 20', r"every: expected at most the 10 steps of the run, got 20"),
        ('schedule = "cubic"\nsteps = 10\nevery = 2\nkeep_every = 20', "keep_every: expected at most the 10 steps"),
        ('schedule = "cubic"\nrecover = "prayer"', "recover: expected 'logits' or 'hidden' or 'text', got 'prayer'"),
        ('schedule = "cubic"\nmax_memory = "much"', "max_memory: size 'much'"),
        ('schedule = "square"', "schedule: expected 'once' or 'cubic', got 'square'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        settings_of(f'name = "prune"\nsparsity = 0.5\n{text}\n')


def test_whole_layers_have_no_schedule() -> None:
    with pytest.raises(RecipeError, match="schedule: method 'layers' removes whole layers"):
        settings_of('name = "prune"\nmethod = "layers"\nlayers = 1\nschedule = "cubic"\n')


def test_learning_needs_tokens_whatever_the_method(tiny: Checkpoint, tmp_path: Path) -> None:
    step = parse_recipe(f'[[pass]]\n{GRADUAL}method = "magnitude"\n').passes[0]
    assert step.needs_tokens
    with pytest.raises(CalibrationError, match="pass 'prune' needs calibration tokens"):
        find_pass("prune").run(tiny, step.settings, PassRun(tmp_path))
