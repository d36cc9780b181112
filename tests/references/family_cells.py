"""What edgepack does with a model, a cell each, run as a user runs it: through the command line."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from wire_models import varied_text

from edgepack.cli import execute

if TYPE_CHECKING:
    from pathlib import Path

CELLS = ("dry-run", "q4km", "imatrix", "gptq", "wire", "fit", "validate", "checkpoint")
SENTENCES = "".join(f"{i} quick brown foxes jump over {i + 1} lazy dogs. " * 3 + "\n\n" for i in range(12))


def run_cell(cell: str, model: Path, scratch: Path) -> str:
    """Empty where it works, else the reason that edgepack gives.

    Args:
        cell: one of `CELLS`.
        model: a checkpoint.
        scratch: a folder that cells of the same model share: `fit`, `validate` and `checkpoint` take the file of `q4km`.
    """
    text = scratch / "text.txt"
    text.write_text(SENTENCES if cell != "wire" else varied_text(1500), encoding="utf-8")  # which wants varied text
    file = scratch / "q4km.gguf"
    if (
        cell in ("fit", "validate", "checkpoint")
        and not file.is_file()
        and (reason := run_cell("q4km", model, scratch))
    ):
        return reason
    export = ["export", str(model), "--target", "gguf-q4km"]
    arguments = {
        "dry-run": [*export, "--dry-run"],
        "q4km": [*export, "-o", str(file)],
        "imatrix": [*export, "--calibration", str(text), "--no-refine", "-o", str(scratch / "imatrix.gguf")],
        "gptq": [*export, "--pass", "gptq", "--calibration", str(text), "-o", str(scratch / "gptq.gguf")],
        "wire": [
            "export", str(model), "--target", "wire", "--bits", "12", "--host-type", "q8", "--calibration", str(text),
            "--sequences", "2", "--length", "64", "--trellis", "0", "-o", str(scratch / "wire.edgepack"),
        ],
        "checkpoint": ["checkpoint", str(file), "-o", str(scratch / "back"), "--dry-run"],
        "fit": ["fit", str(file), "--device", "cpu", "--kv-type", "f16", "--ctx", "128"],
        "validate": [
            "validate", str(file), "--reference", str(model), "--text", str(text), "--ctx", "64",
            "--min-agreement", "0.001",
        ],
    }[cell]  # fmt: skip
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = execute([*arguments, "--json"])
    return "" if code == 0 else errors.getvalue().strip().rpartition("\n")[2].removeprefix("edgepack: error: ")
