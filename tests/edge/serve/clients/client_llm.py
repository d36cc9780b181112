"""Simon Willison's `llm`, through its command line."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from features import SCHEMA, arguments, run

url, model = arguments()
folder = Path(tempfile.mkdtemp(prefix="llm-"))
(folder / "extra-openai-models.yaml").write_text(
    f"- model_id: local\n  model_name: {model}\n  api_base: {url}/v1\n  supports_schema: true\n  supports_tools: true\n"
)
(folder / "keys.json").write_text(json.dumps({"openai": "none"}))
os.environ["LLM_USER_PATH"] = str(folder)

from click.testing import CliRunner  # noqa: E402
from llm.cli import cli  # noqa: E402 - it looks for its folder when it is imported


def llm(*options: str) -> str:
    done = CliRunner().invoke(cli, ["-m", "local", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def chat() -> None:
    assert llm("hi", "-s", "be brief", "-o", "max_tokens", "6", "-o", "temperature", "0", "--no-stream") is not None


def stream() -> None:
    short = ("hi", "-o", "max_tokens", "6", "-o", "temperature", "0")
    assert llm(*short).strip() == llm(*short, "--no-stream").strip()


def json_schema() -> None:
    answer = llm("hi", "--schema", json.dumps(SCHEMA), "-o", "max_tokens", "100", "--no-stream")
    assert json.loads(answer)["color"] in ("red", "blue")


run({"chat": chat, "stream": stream, "system, developer": chat, "JSON schema": json_schema})
