"""No output tells anything of the machine that it was made on, and no command connects to anything unless asked to."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import Shape, write_random

from edgepack.cli import execute
from edgepack.packaging.archive import is_archive, open_archive

WORDS = "Once upon a time there was a small fox who wanted to see the sea and the hills behind it. " * 60


@pytest.fixture
def places(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Sources in a folder whose name would be noticed, and another one for outputs."""
    secret = tmp_path / "home-of-jane-doe"
    secret.mkdir()
    shutil.copytree(books, secret / "model")
    write_random(secret / "a.gguf", Shape(context=64), seed=1)
    write_random(secret / "b.gguf", Shape(context=64), seed=2)
    (secret / "text.txt").write_text(WORDS)
    recipe = f'[calibration]\ntext = "{secret / "text.txt"}"\nsequences = 2\nlength = 32\n[[pass]]\nname = "awq"\n'
    (secret / "recipe.toml").write_text(recipe)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    monkeypatch.chdir(secret)
    for variable in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(variable, "jane-roe-the-user")
    return {"secret": secret, "outputs": outputs}


def commands(secret: Path, outputs: Path) -> list[list[str]]:
    """Every command that writes a file for others, with absolute names wherever a name is given."""
    text, model, a, b = (str(secret / name) for name in ("text.txt", "model", "a.gguf", "b.gguf"))

    def out(name: str) -> list[str]:
        return ["-o", str(outputs / name)]

    scored = ["--text", text, "--ctx", "64", "--chunks", "1"]
    return [
        ["export", model, "--target", "gguf-q8", *out("plain.gguf")],
        ["export", model, "--target", "gguf-q4km", "--calibration", text, "--sequences", "2", *out("matters.gguf")],
        ["export", model, "--target", "gguf-q8", "--recipe", str(secret / "recipe.toml"), *out("recipe.edgepack")],
        ["export", a, "--target", "edge-nf4", *out("coded.gguf")],
        ["imatrix", a, "--text", text, "--ctx", "64", "--chunks", "2", *out("imatrix.gguf")],
        ["imatrix", a, "--text", text, "--ctx", "64", "--chunks", "2", *out("imatrix.dat")],
        ["pack", a, "--include", text, *out("a.edgepack")],
        ["pack", b, *out("b.edgepack")],
        ["diff", a, b, *out("ab.edgepatch")],
        ["keygen", str(outputs / "key")],
        ["sign", str(outputs / "a.edgepack"), "--key", str(outputs / "key")],
        ["certify", a, "--reference", a, *scored, *out("certified.edgepack")],
        ["validate", a, "--reference", b, *scored, "--report", str(outputs / "report.html")],
        ["analyze", model, *out("spectra.json"), "--report", str(outputs / "spectra.html")],
    ]


def contents(path: Path) -> dict[str, bytes]:
    """A file's bytes, and those of every member and of the index where it is an archive."""
    found = {path.name: path.read_bytes()}
    if is_archive(path):
        with open_archive(path) as archive:
            found[f"{path.name}: index"] = archive.index_record
            found |= {f"{path.name}: {m.name}": archive.read_member(m.name) for m in archive.members}
    return found


@pytest.mark.slow
def test_no_output_names_the_maker_s_folders_user_or_host(places: dict[str, Path]) -> None:
    secret, outputs = places["secret"], places["outputs"]
    for arguments in commands(secret, outputs):
        assert execute(arguments) in (0, 1), arguments
    told = [b"home-of-jane-doe", str(Path.home()).encode() + b"/", os.fsencode(secret.parent)]
    names = [name.encode() for name in (getpass.getuser(), socket.gethostname()) if len(name) > 3]
    files = [path for path in outputs.iterdir() if path.is_file()]
    assert len(files) >= 14
    for path in files:
        for what, content in contents(path).items():
            for word in told:
                assert word not in content, f"{what} holds {word!r}"
            for name in names:
                assert not re.search(rb"\b" + re.escape(name) + rb"\b", content), f"{what} holds {name!r}"


def _can_trace() -> bool:
    if sys.platform != "linux" or shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-e", "trace=connect", "true"], capture_output=True)
    return tried.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _can_trace(), reason="needs strace and the right to use it")
def test_no_command_opens_a_connection(places: dict[str, Path], tmp_path: Path) -> None:
    """Validation against a Hugging Face folder loads transformers: it does not ask its hub for anything either."""
    secret, outputs = places["secret"], places["outputs"]
    scored = ["--text", str(secret / "text.txt"), "--ctx", "64", "--chunks", "1"]
    more = [
        ["validate", str(outputs / "plain.gguf"), "--reference", str(secret / "model"), *scored],
        ["run", str(outputs / "a.edgepack"), "--prompt", "a", "--max-tokens", "2"],
        ["verify", str(outputs / "a.edgepack")],
        ["fit", str(secret / "a.gguf"), "--ctx", "64"],
        ["doctor"],
    ]
    script = "import json, sys\nfrom edgepack.cli import execute\nfor line in json.loads(sys.argv[1]): execute(line)\n"
    every = [*commands(secret, outputs), *more]
    log = tmp_path / "strace.log"
    environment = {**os.environ, "EDGEPACK_CACHE": str(tmp_path / "cache")}
    subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", log, sys.executable, "-c", script, json.dumps(every)],
        capture_output=True, env=environment, check=True,
    )  # fmt: skip
    reached_out = [line for line in log.read_text().splitlines() if "AF_INET" in line]
    assert reached_out == []
    assert (outputs / "report.html").exists()
    assert (outputs / "certified.edgepack").exists()
