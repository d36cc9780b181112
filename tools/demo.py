"""The whole journey on the bundled model: `make demo`. Needs no network; every command is shown as it is run.

Exports to Q5_K_M, packs, verifies, unpacks, asks for a continuation; then one table over three targets, with
each file held token by token against the original. The text is the model's own (tools/sample_text.py).
"""

from __future__ import annotations

import filecmp
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgepack.quant.types.targets import find_target
from edgepack.quantities import format_size

ROOT = Path(__file__).resolve().parent.parent
MODEL = Path("tests/data/books-llama-6m")
TEXT = Path("tests/data/own-words.txt")
OUT = Path("demo")
TARGETS = ("q6k", "q5km", "q4km")
GATE = 0.95
PROMPT = "It was a dark night, and"


def edgepack(*arguments: object, shown: bool = True) -> str:
    """Run one edgepack command from the checkout; gives its stdout. Ends the demo where it fails."""
    words = [str(word) for word in arguments]
    if shown:
        print(f"\n$ edgepack {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "edgepack", *words]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if shown and "--json" not in words:
        print(result.stdout.rstrip("\n"), end="\n" if result.stdout else "", flush=True)
    if result.returncode not in (0, 1):
        sys.exit(result.returncode)
    return result.stdout


def edgepack_json(*arguments: object) -> dict[str, Any]:
    """Run one edgepack command quietly with --json; gives the object."""
    found: dict[str, Any] = json.loads(edgepack(*arguments, "--json", shown=False))
    return found


def journey() -> None:
    """One file from checkpoint to continuation."""
    gguf, archive, restored = OUT / "q5km.gguf", OUT / "q5km.edgepack", OUT / "restored.gguf"
    edgepack("export", MODEL, "--target", "gguf-q5km", "-o", gguf)
    edgepack("pack", gguf, "-o", archive)
    edgepack("verify", archive)
    edgepack("unpack", archive, "-o", restored)
    if not filecmp.cmp(ROOT / gguf, ROOT / restored, shallow=False):
        sys.exit("demo: the restored file differs from the packed one")
    edgepack("run", archive, "--prompt", PROMPT, "--max-tokens", 48, "--temperature", 0.8, "--seed", 1)


def measure() -> list[dict[str, Any]]:
    """A row for each target: sizes, agreement with the original, tokens a second."""
    rows = []
    for name in TARGETS:
        gguf, archive = OUT / f"{name}.gguf", OUT / f"{name}.edgepack"
        exported = edgepack_json("export", MODEL, "--target", f"gguf-{name}", "-o", gguf, "--force")
        packed = edgepack_json("pack", gguf, "-o", archive, "--force")
        spoken = edgepack_json("run", gguf, "--prompt", PROMPT, "--max-tokens", 128, "--temperature", 0)
        rows.append({"target": f"gguf-{name}", "original": exported["source_bytes"], "gguf": exported["bytes"],
                     "archive": packed["bytes"], "speed": spoken["tokens_per_second"]})  # fmt: skip
    files = [OUT / f"{name}.gguf" for name in TARGETS]
    compared = edgepack_json(
        "compare", *files, "--reference", MODEL, "--text", TEXT, "--min-agreement", GATE, "--no-floor"
    )
    by_name = {Path(candidate["path"]).stem: candidate for candidate in compared["candidates"]}
    for row in rows:
        row |= by_name[row["target"].removeprefix("gguf-")]
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """The table, and what it says."""
    tokens = rows[0]["tokens"]
    print(f"\n{MODEL.name} against the original in float32, {tokens:,} tokens that the model itself wrote:\n")
    heads = f"{'original':>9} {'GGUF':>9} {'archive':>9} {'agreement (95 % interval)':>27} {'gate':>9} {'tokens/s':>9}"
    print(f"{'target':<10} {heads}")
    for row in rows:
        low, high = row["top1_interval"]
        agreement = f"{row['top1_agreement']:.2%} ({low:.2%}–{high:.2%})"
        sizes = " ".join(f"{format_size(row[key]):>9}" for key in ("original", "gguf", "archive"))
        verdict = "passes" if row["passed"] else "fails"
        print(f"{row['target']:<10} {sizes} {agreement:>27} {verdict:>9} {row['speed']:>9.0f}")
    passing = [row["target"] for row in sorted(rows, key=lambda row: row["gguf"]) if row["passed"]]
    verdict = f"the smallest that passes is {passing[0]}" if passing else "none of them passes"
    print(f"\nGate: the lower end of the interval must reach {GATE:.0%}; {verdict}. Small models are the hardest to")
    print(f"quantise: models of 8 B parameters reach it at {find_target('q5km').label}. The files are in {OUT}/.")


def main() -> None:
    """Run the demo and say how long it took."""
    started = time.monotonic()
    shutil.rmtree(ROOT / OUT, ignore_errors=True)
    (ROOT / OUT).mkdir()
    journey()
    print(f"\nThe same for {', '.join(TARGETS)}, each held against the original …", flush=True)
    print_table(measure())
    print(f"\nAll of this took {time.monotonic() - started:.0f} s and no network.")


if __name__ == "__main__":
    main()
