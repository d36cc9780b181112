"""A text that cannot be read gives the same line and exit code by every route."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.cli import execute
from edgepack.errors import UsageError

BOOKS = Path(__file__).resolve().parents[1] / "data/books-llama-6m"
ROUTES = {
    "imatrix": ["imatrix", "BOOKS", "--text", "TEXT"],
    "export --calibration": ["export", "BOOKS", "--target", "gguf-q4km", "--calibration", "TEXT"],
    "export edge --calibration": ["export", "BOOKS", "--target", "edge-seedlm4", "--calibration", "TEXT"],
    "export wire --calibration": ["export", "BOOKS", "--target", "wire", "--max-size", "9MB", "--calibration", "TEXT"],
    "export --pass --calibration": ["export", "BOOKS", "--target", "q4_0", "--pass", "awq", "--calibration", "TEXT"],
    "export --recipe": ["export", "BOOKS", "--target", "q4_0", "--recipe", "RECIPE"],
    "analyze": ["analyze", "BOOKS", "--text", "TEXT"],
    "validate": ["validate", "GGUF", "--reference", "BOOKS", "--text", "TEXT"],
    "compare": ["compare", "GGUF", "--reference", "BOOKS", "--text", "TEXT"],
    "certify": ["certify", "GGUF", "--reference", "BOOKS", "--text", "TEXT"],
    "evaluate": ["evaluate", "GGUF", "--reference", "BOOKS", "--task", "TEXT"],
    "calibrate --questions": ["calibrate", "GGUF", "--questions", "TEXT"],
    "calibrate --from-text": ["calibrate", "GGUF", "--from-text", "TEXT"],
    "run --grammar": ["run", "GGUF", "--prompt", "x", "--grammar", "@TEXT"],
    "prune-grid --calibration": ["prune-grid", "BOOKS", "--sparsity", "0.5", "--calibration", "TEXT"],
    "prune-grid --text": ["prune-grid", "BOOKS", "--sparsity", "0.5", "--text", "TEXT"],
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    assert execute(["export", str(BOOKS), "--target", "gguf-q8_0", "-o", str(path)]) == 0
    return path


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read: No such file"), (b"ab\xff", "byte 2 is 0xff")])
def test_an_unreadable_text_is_a_wrong_option_by_every_route(
    route: str, content: bytes | None, said: str, gguf: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    text, recipe = tmp_path / ("text.jsonl" if route == "evaluate" else "text.txt"), tmp_path / "recipe.toml"
    if content is not None:
        text.write_bytes(content)
    recipe.write_text(f'[calibration]\ntext = "{text}"\n[[pass]]\nname = "awq"\n')
    before = set(tmp_path.iterdir())
    places = {"BOOKS": str(BOOKS), "TEXT": str(text), "RECIPE": str(recipe), "GGUF": str(gguf)}
    places["@TEXT"] = f"@{text}"
    assert execute([places.get(argument, argument) for argument in ROUTES[route]]) == UsageError.exit_code
    told = capsys.readouterr().err
    assert told.startswith(f"edgepack: error: {text}: ")
    assert said in told
    assert told.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_a_chat_template_that_is_no_text_is_one_too(
    gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "template.jinja"
    template.write_bytes(b"ab\xff")
    assert execute(["run", str(gguf), "--chat", "--prompt", "x", "--template", str(template)]) == UsageError.exit_code
    assert "byte 2 is 0xff" in capsys.readouterr().err
