"""The wire at hosts of K-quants: a refined file that heeds its archive, both goals hit, the same bytes again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from wire_models import text_beside, write_small_llama  # noqa: E402

import edgepack  # noqa: E402
from edgepack.export.refine import matrices as refined_matrices  # noqa: E402
from edgepack.gguf import keys  # noqa: E402
from edgepack.gguf.reader import read_header  # noqa: E402
from edgepack.pipeline.export import run_export  # noqa: E402
from edgepack.pipeline.makers import rated  # noqa: E402
from edgepack.pipeline.makers.aim import Aim  # noqa: E402
from edgepack.pipeline.makers.rated import LEAST_SHARE, RatedScale, rated_request  # noqa: E402
from edgepack.pipeline.makers.refined_scale import RefinedTrial  # noqa: E402
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


class Filling(RatedScale):
    """Sizes by how many of 211 matrices have no rate, in place of files."""

    def __init__(self, sizes: list[int], wanted: int) -> None:
        self._sizes, self._asked, self._even, self.aim = sizes, wanted, 1.0, Aim(1)
        self._refined: Any = SimpleNamespace(matrices=lambda _aim: len(sizes) - 1)
        self.trials: list[Any] = [self._trial(0)]

    @property
    def wanted(self) -> int:
        return self._asked

    def _trial(self, free: int) -> Any:
        return RefinedTrial(0.001, self._sizes[free], None, free)  # type: ignore[arg-type]

    def _tried(self, scale: float, aim: Aim) -> Any:
        assert scale == 0.001
        self.trials.append(self._trial(aim.free))
        return self.trials[-1]


@given(
    steps=st.lists(st.integers(1, 20_000), min_size=211, max_size=211),
    share=st.floats(0, 1.1),
    least=st.integers(0, 10**6),
)
def test_matrices_without_a_rate_are_as_many_as_fit(steps: list[int], share: float, least: int) -> None:
    sizes = [least + sum(steps[:count]) for count in range(212)]
    wanted = sizes[0] + int(share * (sizes[-1] - sizes[0]))
    filling = Filling(sizes, wanted)
    filling.fill()
    last = filling.trials[-1]
    assert last.archive_bytes <= wanted
    assert last.archive_bytes >= wanted * 0.995 or last.free == 211 or sizes[last.free + 1] > wanted
    assert len(filling.trials) <= 11


@pytest.mark.usefixtures("taken_at_any_size")
def test_as_many_bytes_as_a_refined_file_ships_in_give_that_file_and_some_fewer_leave_matrices_without_rate(
    model: Path, text: Path, memory: int, refined: Any, tmp_path: Path
) -> None:
    plain, packed = refined
    whole = wire(model, text, tmp_path / "whole.edgepack", host_type="q5k", max_download=int(1.01 * packed.bytes))
    every = whole.as_json()["unrated"]
    wanted = whole.bytes - 300
    mixed = wire(model, text, tmp_path / "x.edgepack", host_type="q5k", max_download=wanted)
    told = mixed.as_json()
    assert mixed.bytes <= wanted  # not near it: the embedding alone is four fifths of this model
    assert told["rate"] > 0
    assert 0 < told["unrated"] < every
    least, same, some = (each.as_json()["refined"]["predicted_kl_of_weights"] for each in (plain, whole, mixed))
    assert same == pytest.approx(least, rel=0.01)
    assert some < 1.05 * least
    found = edgepack.check_provenance(mixed.output, model, calibration=text)
    assert (found.same, found.differences) == (True, ())


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
