"""Everything that trains, from command to file: killed, or stopped by a full disk, it goes on to the very same bytes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from invented_canon import write_canon
from wire_models import varied_text, write_small_llama

import edgepack
from edgepack.errors import NumericError, ResourceError
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from small_disk import SmallDisk

STEPS = 6
LEARNING = f"steps = {STEPS}\nbatch = 2\nkeep_every = 2\n"
RECIPES = {
    "prune": f'name = "prune"\nschedule = "cubic"\nmethod = "magnitude"\nsparsity = 0.5\nevery = 2\n{LEARNING}',
    "ternary": f'name = "ternary"\n{LEARNING}',
}
LABELS = {
    "prune": "Pruning and learning", "ternary": "Ternary learning", "recover": "recovering", "teach": "teaching",
}  # fmt: skip


class Trained:
    """A small model with text and documents, and what each command makes of them.

    Args:
        folder: for all of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._whole = folder, dict[str, bytes]()
        self.model = write_small_llama(folder / "model")
        edgepack.export(self.model, "gguf-q4_0", output=folder / "small.gguf")
        (folder / "text.txt").write_text(varied_text(900))
        write_canon(folder / "canon", 8)
        head = f'[calibration]\ntext = "{folder / "text.txt"}"\nsequences = 4\nlength = 32\nimportance = false\n'
        for name, text in RECIPES.items():
            (folder / f"{name}.toml").write_text(f"{head}[[pass]]\n{text}")

    def make(self, name: str, output: Path, **more: Any) -> None:
        """Run one command."""
        adapter = {"steps": STEPS, "rate": 5e-3, "batch": 2, "rank": 4, "threads": 1, **more}
        text, small = self.folder / "text.txt", self.folder / "small.gguf"
        if name == "recover":
            edgepack.recover(small, self.model, text, output, ctx=32, hardest=6, **adapter)
        elif name == "teach":
            edgepack.teach(small, self.folder / "canon", output, other=text, ctx=96, ask=4, replay=4, **adapter)
        else:
            recipe = self.folder / f"{name}.toml"
            edgepack.export(self.model, "gguf-f16", output=output, recipe=recipe, threads=1, **more)

    def whole(self, name: str) -> bytes:
        """The bytes of a run that nothing stopped; made once."""
        if name not in self._whole:
            path = self.folder / f"whole-{name}" / "m.gguf"
            path.parent.mkdir()
            self.make(name, path)
            self._whole[name] = path.read_bytes()
        return self._whole[name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def when(label: str, happens: Callable[[], None], step: int | None = None) -> Any:
    """A progress that calls `happens` as a stretch of that name has done so many steps, or is over."""

    @contextmanager
    def progress(told: str, _total: int, _unit: str = "B") -> Iterator[Callable[[int], object]]:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            if told == label and done == step:
                happens()

        yield advance
        if told == label and step is None:
            happens()

    return progress


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", LABELS)
def test_a_killed_run_goes_on_to_the_bytes_of_one_that_was_not(trained: Trained, tmp_path: Path, name: str) -> None:
    output = tmp_path / "m.gguf"
    with pytest.raises(KeyboardInterrupt):
        trained.make(name, output, progress=when(LABELS[name], stop, 5))
    assert not output.exists()
    told: list[int] = []
    trained.make(name, output, resume=True, progress=when(LABELS[name], lambda: told.append(1), 2))
    assert output.read_bytes() == trained.whole(name)
    assert told, "no step was left to do"
    assert not list(tmp_path.glob(".*")), "scratch is left"


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("at", ["a checkpoint", "the end"])
def test_a_full_disk_keeps_what_was_learnt_and_with_room_the_run_goes_on(
    trained: Trained, small_disk: SmallDisk, name: str, at: str
) -> None:
    output, step = small_disk.path / "m.gguf", 4 if at == "a checkpoint" else None
    with pytest.raises(ResourceError) as caught:
        trained.make(name, output, progress=when(LABELS[name], lambda: small_disk.fill(left=1000), step))
    assert caught.value.exit_code == 9
    if step:
        text = "learning: the checkpoint after step 4 cannot be written: No space left on device; that after step"
        assert str(caught.value).startswith(text)
    assert "disk" in str(caught.value) or "device" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    small_disk.make_room()
    assert not output.exists()
    trained.make(name, output, resume=True)
    assert output.read_bytes() == trained.whole(name)
    assert not list(small_disk.path.glob(".*")), "scratch is left"


@pytest.mark.parametrize("name", ["prune", "ternary"])
def test_numbers_that_are_not_finite_leave_the_checkpoint_that_the_text_names(
    trained: Trained, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepack.quant.learning.objectives import Distillation

    real, calls = Distillation.__call__, [0]

    def poisoned(self: Distillation, model: Any, inputs: Any) -> Any:
        calls[0] += model.training
        return real(self, model, inputs) * (float("nan") if calls[0] == 4 else 1)

    monkeypatch.setattr(Distillation, "__call__", poisoned)
    output = tmp_path / "m.gguf"
    with pytest.raises(NumericError, match=r"a loss of nan at step 4: the checkpoint after step 2 is kept"):
        trained.make(name, output)
    assert not output.exists()
    monkeypatch.undo()
    trained.make(name, output, resume=True)
    assert output.read_bytes() == trained.whole(name)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("target", ["gguf-f16", "gguf-q4_0"])
def test_no_steps_give_the_weights_of_an_export_without_the_pass(
    trained: Trained, tmp_path: Path, name: str, target: str
) -> None:
    recipe = (trained.folder / f"{name}.toml").read_text().replace(LEARNING, "steps = 0\n").replace("every = 2\n", "")
    (tmp_path / "r.toml").write_text(recipe)
    found = []
    for more in ({}, {"recipe": tmp_path / "r.toml"}):
        path = tmp_path / f"{len(more)}.gguf"
        edgepack.export(trained.model, target, output=path, threads=1, **more)
        found.append(path.read_bytes()[read_header(path).data_start :])
    assert found[0] == found[1]
