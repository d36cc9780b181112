"""`edgepack compress`: stages that are done are skipped, constraints end a run with their figures, bytes are the same."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from wire_models import write_small_llama  # noqa: E402

import edgepack  # noqa: E402
from edgepack.cli import execute  # noqa: E402
from edgepack.errors import CheckFailedError, EdgepackError, RecipeError, UsageError  # noqa: E402
from edgepack.gguf.reader import read_header  # noqa: E402
from edgepack.gguf.variant import read_variant  # noqa: E402
from edgepack.pipeline.stages.memory import PeakMemory, own_bytes  # noqa: E402
from edgepack.pipeline.stages.staged_recipe import parse_staged  # noqa: E402
from edgepack.quant.calibration.blocks import BlockwiseModel  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

CALIBRATION = '[calibration]\ntext = "{text}"\nsequences = 6\nlength = 32\n'
PRUNE = '[[pass]]\nname = "prune"\nmethod = "sparsegpt"\nsparsity = 0.3\n'
GPTQ = '[[pass]]\nname = "gptq"\n'
EXPORT = '[export]\ntarget = "gguf-q4km"\n'
VALIDATE = '[validate]\ntext = "{text}"\nctx = 32\nchunks = 12\n'
WHOLE = f"{CALIBRATION}{PRUNE}{GPTQ}{EXPORT}[pack]\n{VALIDATE}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("stages") / "small", num_hidden_layers=2)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks were loaded: what passes do."""
    counts, real = [0], BlockwiseModel.block

    def block(self: BlockwiseModel, index: int) -> object:
        counts[0] += 1
        return real(self, index)

    monkeypatch.setattr(BlockwiseModel, "block", block)
    return counts


@pytest.fixture
def write(tmp_path: Path, books: Path) -> Any:
    """Writes a recipe whose `{text}` is a text."""
    text = tmp_path / "text.txt"
    text.write_text((books.parent / "own-words.txt").read_text(encoding="utf-8")[:30_000])

    def written(recipe: str, name: str = "recipe.toml") -> Path:
        path = tmp_path / name
        path.write_text(recipe.replace("{text}", str(text)))
        return path

    return written


def stages(result: Any) -> dict[str, bool]:
    """Name of each stage → whether it was skipped."""
    return {stage.name: stage.skipped for stage in result.done.stages}


ALL = ["pass-0-prune", "pass-1-gptq", "export", "pack", "validate"]


def test_all_stages_run_once_and_the_file_is_that_of_a_plain_export(
    model: Path, write: Any, tmp_path: Path, blocks: list[int]
) -> None:
    result = edgepack.compress(model, write(WHOLE), tmp_path / "out", threads=1)
    assert stages(result) == dict.fromkeys(ALL, False)
    plain = tmp_path / "plain.gguf"
    edgepack.export(
        model, target="gguf-q4km", recipe=write(CALIBRATION + PRUNE + GPTQ, "plain.toml"), output=plain, threads=1
    )
    (made,) = (tmp_path / "out").glob("*.gguf")
    assert read_header(made).metadata["edgepack.pass.1.name"].value == "gptq"
    ours, theirs = read_header(made), read_header(plain)
    assert made.read_bytes()[ours.data_start :] == plain.read_bytes()[theirs.data_start :]
    assert result.output.suffix == ".edgepack"
    unpacked = tmp_path / "unpacked.gguf"
    edgepack.unpack(result.output, unpacked)
    assert unpacked.read_bytes() == made.read_bytes()
    before, blocks[0] = result.output.read_bytes(), 0
    again = edgepack.compress(model, write(WHOLE), tmp_path / "out", threads=1)
    assert stages(again) == dict.fromkeys(ALL, True)
    assert blocks[0] == 0
    assert again.output.read_bytes() == before
    summary = json.loads((tmp_path / "out/recipe.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ALL
    assert summary["ratio"] == pytest.approx(result.done.source_bytes / result.done.bytes)


def test_passes_that_train_are_stages_whose_work_is_kept_and_seeds_may_follow_ternary_weights(
    model: Path, write: Any, tmp_path: Path
) -> None:
    trained = '[[pass]]\nname = "ternary"\nsteps = 2\nbatch = 2\n'
    recipe = write(f'{CALIBRATION}{trained}[export]\ntarget = "edge-seedlm4:register_bits=8"\n[pack]\n')
    result = edgepack.compress(model, recipe, tmp_path / "out", threads=1)
    assert stages(result) == {"pass-0-ternary": False, "export": False, "pack": False}
    (made,) = (tmp_path / "out").glob("*.gguf")
    codecs = [stage.codec for tensor in read_variant(read_header(made)).coded for stage in tensor.stages]
    assert codecs == ["seedlm"] * 15  # seven matrices of two blocks, and the embedding
    before = result.output.read_bytes()
    again = edgepack.compress(model, recipe, tmp_path / "out", threads=1)
    assert stages(again) == {"pass-0-ternary": True, "export": True, "pack": True}
    assert again.output.read_bytes() == before
    pruned = trained + PRUNE
    with pytest.raises(RecipeError, match="ternary"):
        edgepack.compress(model, write(f"{CALIBRATION}{pruned}{EXPORT}", "late.toml"), tmp_path / "late", threads=1)


def test_another_setting_runs_its_stage_and_those_behind_it_alone(model: Path, write: Any, tmp_path: Path) -> None:
    edgepack.compress(model, write(WHOLE), tmp_path / "out", threads=1)
    changed = write(WHOLE.replace('name = "gptq"', 'name = "gptq"\ndamping = 0.02'))
    assert stages(edgepack.compress(model, changed, tmp_path / "out", threads=1)) == {
        "pass-0-prune": True, "pass-1-gptq": False, "export": False, "pack": False, "validate": False
    }  # fmt: skip
    packed = write(
        WHOLE.replace("[pack]", "[pack]\nlevel = 3").replace('name = "gptq"', 'name = "gptq"\ndamping = 0.02')
    )
    found = stages(edgepack.compress(model, packed, tmp_path / "out", threads=1))
    assert found == {**dict.fromkeys(ALL, True), "pack": False, "validate": False}


def test_a_kept_pass_gives_the_bytes_of_one_that_is_done(model: Path, write: Any, tmp_path: Path) -> None:
    """The first target runs the passes, the second takes them from disk: the first pass of both, GPTQ's of none."""
    for target in ("gguf-q4km", "gguf-q8"):
        recipe = write(WHOLE.replace("gguf-q4km", target))
        edgepack.compress(model, recipe, tmp_path / "kept", threads=1)
    fresh = edgepack.compress(model, recipe, tmp_path / "fresh", threads=1)
    kept = tmp_path / "kept" / fresh.output.name
    assert kept.read_bytes() == fresh.output.read_bytes()


def test_a_stage_is_done_again_when_its_file_is_another_or_gone(model: Path, write: Any, tmp_path: Path) -> None:
    recipe = write(WHOLE)
    first = edgepack.compress(model, recipe, tmp_path / "out", threads=1)
    expected = first.output.read_bytes()
    first.output.write_bytes(expected[:-1] + b"\0")
    found = stages(edgepack.compress(model, recipe, tmp_path / "out", threads=1))
    assert not found["pack"]
    assert found["export"]
    assert first.output.read_bytes() == expected
    (gguf,) = (tmp_path / "out").glob("*.gguf")
    gguf.unlink()
    (weights,) = (tmp_path / "out/stages").glob("pass-1-gptq-*/weights")
    next(weights.iterdir()).write_bytes(b"not an array")
    found = stages(edgepack.compress(model, recipe, tmp_path / "out", threads=1))
    assert found["pass-0-prune"]
    assert not found["pass-1-gptq"]
    assert first.output.read_bytes() == expected


def test_another_model_or_text_runs_everything(model: Path, write: Any, tmp_path: Path) -> None:
    recipe = write(CALIBRATION + PRUNE + EXPORT)
    edgepack.compress(model, recipe, tmp_path / "out", threads=1)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    found = stages(edgepack.compress(other, recipe, tmp_path / "out", threads=1, force=True))
    assert not any(found.values())
    text = tmp_path / "text.txt"
    text.write_text(text.read_text()[100:])
    found = stages(edgepack.compress(other, recipe, tmp_path / "out", threads=1))
    assert not any(found.values())


MISSED = [
    ("max_accuracy_drop = 0.0001", "after stage pass-0-prune: constraints.max_accuracy_drop: accuracy drop "),
    ("max_memory = 2000000", "after stage pass-0-prune: constraints.max_memory: peak memory "),
    ("min_ratio = 90", "after stage pack: constraints.min_ratio: ratio "),
    ('max_size = "30kB"', "after stage pack: constraints.max_size: "),
]


@pytest.mark.parametrize(("constraint", "message"), MISSED)
def test_a_missed_constraint_ends_the_run_with_1_and_its_figures(
    constraint: str, message: str, model: Path, write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(f"{WHOLE}[constraints]\n{constraint}\n")
    metrics, log = tmp_path / "m.prom", tmp_path / "run.log"
    arguments = ["compress", str(model), str(recipe), "-o", str(tmp_path / "out"), "--threads", "1"]
    assert execute([*arguments, "--metrics", str(metrics), "--log", str(log)]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert "must be at " in told
    families = {family.name: family for family in text_string_to_metric_families(metrics.read_text())}
    met = {sample.labels["constraint"]: sample.value for sample in families["edgepack_constraint_met"].samples}
    assert met[constraint.split(maxsplit=1)[0]] == 0
    assert families["edgepack_recipe_success"].samples[0].value == 0
    assert "MISSED" in log.read_text()
    assert message in log.read_text().splitlines()[-1]
    # A looser constraint goes on with what is there.
    loose = write(f"{WHOLE}[constraints]\n")
    assert edgepack.compress(model, loose, tmp_path / "out", threads=1).done.stages[0].skipped


def test_constraints_that_are_met_are_told_in_log_and_metrics(model: Path, write: Any, tmp_path: Path) -> None:
    constraints = "[constraints]\nmax_accuracy_drop = 0.9\nmin_ratio = 1.5\nmax_memory = '16GB'\nmax_size = '1GB'\n"
    metrics, log = tmp_path / "m.prom", tmp_path / "run.log"
    recipe = write(WHOLE + constraints)
    result = edgepack.compress(model, recipe, tmp_path / "out", threads=1, metrics=metrics, log=log)
    by_name = {stage.name: stage for stage in result.done.stages}
    assert all("accuracy_drop" in by_name[name].figures for name in ALL if name != "pack")
    assert by_name["export"].figures["agreement"] == by_name["validate"].figures["agreement"]
    assert all(stage.peak_memory_bytes > 10_000_000 for stage in result.done.stages)
    samples = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(metrics.read_text())
        for sample in family.samples
    ]
    assert ("edgepack_recipe_success", {}, 1.0) in samples
    assert ("edgepack_constraint_limit", {"constraint": "min_ratio"}, 1.5) in samples
    assert {labels["stage"] for name, labels, _ in samples if name == "edgepack_stage_seconds"} == set(ALL)
    lines = log.read_text().splitlines()
    assert sum("met max_memory" in line for line in lines) == len(ALL)
    edgepack.compress(model, recipe, tmp_path / "out", threads=1, log=log)
    assert log.read_text().splitlines()[: len(lines)] == lines


def test_json_says_what_toml_says(write: Any) -> None:
    toml = write(WHOLE + "[constraints]\nmin_ratio = 2\n").read_text()
    table: dict[str, Any] = {
        "calibration": {"text": str(write(WHOLE).parent / "text.txt"), "sequences": 6, "length": 32},
        "pass": [{"name": "prune", "method": "sparsegpt", "sparsity": 0.3}, {"name": "gptq"}],
        "export": {"target": "gguf-q4km"}, "pack": {}, "constraints": {"min_ratio": 2},
        "validate": {"text": str(write(WHOLE).parent / "text.txt"), "ctx": 32, "chunks": 12},
    }  # fmt: skip
    ours, theirs = parse_staged(json.dumps(table)), parse_staged(toml)
    assert ours.passes is not None
    assert theirs.passes is not None
    assert ours.passes.passes == theirs.passes.passes
    assert ours.passes_text == theirs.passes_text
    assert (ours.export, ours.pack, ours.validate, ours.constraints) == (
        theirs.export, theirs.pack, theirs.validate, theirs.constraints
    )  # fmt: skip


def test_certify_makes_the_archive_that_is_shipped(model: Path, write: Any, tmp_path: Path) -> None:
    recipe = write(f"{EXPORT}[pack]\n{VALIDATE}[certify]\nstored_tokens = 32\n")
    result = edgepack.compress(model, recipe, tmp_path / "out", threads=1)
    assert result.output.name.endswith("-certified.edgepack")
    assert list(stages(result)) == ["export", "pack", "validate", "certify"]
    assert edgepack.replay(result.output).passed
    again = edgepack.compress(model, recipe, tmp_path / "out", threads=1)
    assert all(stages(again).values())


def test_a_wire_fills_the_archive_that_it_is_told(model: Path, write: Any, tmp_path: Path) -> None:
    export = '[export]\ntarget = "wire"\nbits = 4.0\ncalibration = "{text}"\nsequences = 4\nlength = 32\n'
    result = edgepack.compress(model, write(export + "[pack]\n"), tmp_path / "out", threads=1)
    assert list(stages(result)) == ["export"]
    assert result.output.suffix == ".edgepack"
    assert not edgepack.verify(result.output).problems


REFUSED = [
    ("[constraints]\nmin_ratio = 10\n", "constraints.min_ratio: gguf-q4km takes at least"),
    ('[constraints]\nmax_size = "10kB"\n', "constraints.max_size: gguf-q4km takes at least"),
    ("[constraints]\nmax_memory = 1000\n", "constraints.max_memory: one block and the activations"),
    (
        '[constraints]\nmax_memory = "1MB"\n[[pass]]\nname = "ternary"\nmax_memory = "2MB"\n',
        "constraints.max_memory: pass[1].max_memory allows 2 MB, got 1 MB",
    ),
    (
        '[constraints]\nmax_memory = "5MB"\n[[pass]]\nname = "ternary"\n',
        "constraints.max_memory: weights that learn, their gradients and two moments take ",
    ),
    ("[constraints]\nmax_accuracy_drop = 0\n", "constraints.max_accuracy_drop: expected more than 0"),
    ("[constraints]\nmax_accuracy_drop = 1.0\n", "constraints.max_accuracy_drop: expected 0 to 1 (not included)"),
    ("[constraints]\nmin_ratoi = 2\n", "constraints.min_ratoi: unknown key; did you mean 'min_ratio'?"),
    ("[constraints]\nmax_size = 'big'\n", "constraints.max_size: size 'big'"),
    ("[certify]\n", "certify: expected [pack] with it"),
    ("[validate]\nchunks = 0\n", "validate.chunks: expected 1 to"),
]


@pytest.mark.parametrize(("tables", "message"), REFUSED)
def test_what_cannot_come_true_is_refused_before_any_work(
    tables: str, message: str, model: Path, write: Any, tmp_path: Path, blocks: list[int]
) -> None:
    wanda = '[[pass]]\nname = "awq"\n'
    with pytest.raises(RecipeError) as caught:
        edgepack.compress(model, write(CALIBRATION + wanda + EXPORT + tables), tmp_path / "out")
    assert message in str(caught.value)
    assert blocks[0] == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("", "expected --target"),
        ("[export]\ntarget = 'gguf-q4km'\npack = true\n", "export.pack: unknown key"),
        ("[export]\ntarget = 4\n", "export.target: expected text, got 4"),
        ("[export]\ntarget = 'gguf-q4km'\ntensor_types = [1]\n", "export.tensor_types: expected a text or a list"),
        ("export = 3\n", "export: expected a table"),
        ('{"export": {"target": "gguf-q4km"}, "export": {}}', "export: stands twice in one object"),
        ('{"export": ', "not JSON"),
    ],
)
def test_a_recipe_that_is_wrong_is_one_line(
    recipe: str, message: str, model: Path, write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["compress", str(model), str(write(recipe)), "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_refuses_what_only_stages_check(model: Path, write: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="constraints: belongs to `edgepack compress`"):
        edgepack.export(model, target="gguf-q8", recipe=write(PRUNE + "[constraints]\n"), output=tmp_path / "m.gguf")


def test_an_export_takes_a_recipe_in_json(model: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "r.json", tmp_path / "m.gguf"
    secret = tmp_path / "secret-place"
    secret.mkdir()
    (secret / "t.txt").write_text("words " * 2000)
    recipe.write_text(json.dumps({
        "calibration": {"text": str(secret / "t.txt"), "sequences": 2, "length": 32},
        "pass": [{"name": "prune", "method": "magnitude", "sparsity": 0.5}],
    }))  # fmt: skip
    edgepack.export(model, target="gguf-q8", recipe=recipe, output=out, threads=1)
    told = read_header(out).get("edgepack.recipe")
    assert json.loads(str(told))["calibration"]["text"] == "t.txt"


def test_a_file_that_no_recipe_made_is_not_replaced(model: Path, write: Any, tmp_path: Path) -> None:
    recipe = write(EXPORT)
    first = edgepack.compress(model, recipe, tmp_path / "out", threads=1)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / first.output.name).write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        edgepack.compress(model, recipe, tmp_path / "there")
    assert (tmp_path / "there" / first.output.name).read_text() == "mine"


def test_a_pass_that_was_killed_goes_on_where_it_was(
    model: Path, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(CALIBRATION + PRUNE + EXPORT)
    real, loads = BlockwiseModel.block, []

    def block(self: BlockwiseModel, index: int) -> object:
        loads.append(index)
        if loads == [0, 1]:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(BlockwiseModel, "block", block)
    with pytest.raises(KeyboardInterrupt):
        edgepack.compress(model, recipe, tmp_path / "out", threads=1)
    loads[:] = [9]
    killed = edgepack.compress(model, recipe, tmp_path / "out", threads=1)
    assert loads[1] == 1, "the block that was done was done again"
    whole = edgepack.compress(model, recipe, tmp_path / "whole", threads=1)
    assert killed.output.read_bytes() == whole.output.read_bytes()


def test_a_dry_run_writes_nothing_and_says_the_size(model: Path, write: Any, tmp_path: Path, blocks: list[int]) -> None:
    found = edgepack.compress(model, write(WHOLE), tmp_path / "out", dry_run=True)
    assert found.done.bytes > 0
    assert not (tmp_path / "out").exists()
    assert blocks[0] == 0


def test_peak_memory_sees_what_is_taken_and_let_go() -> None:
    before = own_bytes()
    with PeakMemory() as memory:
        memory.begin()
        taken = bytearray(64 << 20)
        taken[::4096] = b"\1" * len(taken[::4096])
        assert memory.bytes >= before + (48 << 20)
        del taken
        memory.begin()
        assert memory.bytes < before + (48 << 20)


def test_missed_gates_of_validate_are_errors_of_the_tree(model: Path, write: Any, tmp_path: Path) -> None:
    recipe = write(f"{EXPORT}{VALIDATE}min_agreement = 1.0\n")
    for _ in range(2):  # done, then skipped
        with pytest.raises(CheckFailedError, match=r"validate: top-1 agreement .* must be at least 1") as caught:
            edgepack.compress(model, recipe, tmp_path / "out", threads=1)
        assert isinstance(caught.value, EdgepackError)


@pytest.mark.parametrize(("sparsity", "passes"), [(0.1, True), (0.8, False)])
def test_a_trained_model_that_lost_its_answers_is_refused_after_the_pass_that_lost_them(
    sparsity: float, passes: bool, stories: Path, write: Any, tmp_path: Path
) -> None:
    text = tmp_path / "unseen.txt"
    text.write_text("Once upon a time there was a little girl who liked to play in the park with her red ball. " * 60)
    recipe = write(
        f'[[pass]]\nname = "prune"\nmethod = "magnitude"\nsparsity = {sparsity}\n[calibration]\nimportance = false\n'
        f'[export]\ntarget = "gguf-q8"\n[validate]\ntext = "{text}"\nctx = 64\nchunks = 16\n'
        "[constraints]\nmax_accuracy_drop = 0.05\n"
    )
    if passes:
        result = edgepack.compress(stories, recipe, tmp_path / "out", threads=1)
        assert -0.05 < result.done.stages[0].figures["accuracy_drop"] < 0.05
        return
    with pytest.raises(CheckFailedError, match=r"after stage pass-0-prune: constraints.max_accuracy_drop: accuracy"):
        edgepack.compress(stories, recipe, tmp_path / "out", threads=1)
    assert not list((tmp_path / "out").glob("*.gguf"))
