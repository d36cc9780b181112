"""Servers for tests: a process on a free port, the model that they serve, and requests without a client library."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
from tiny_models import Shape, string, write_random

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# As Qwen's: messages, tools, calls and their results, in the spelling that llama.cpp's parser reads.
TOOL_TEMPLATE = """{%- if tools %}<|im_start|>system
{%- if messages[0].role == 'system' %}
{{ messages[0].content }}
{%- endif %}
# Tools
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
Answer with <tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.tool_calls %}<|im_start|>assistant
{{ message.content }}
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% elif message.role != 'system' or not tools %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
THINKING_TEMPLATE = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
NAME = "served"


@dataclass(frozen=True)
class Server:
    """A running `edgepack serve`."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def engine(self) -> psutil.Process:
        """The engine's process, once there is one."""
        return wait_for(lambda: next(iter(self.engines()), None))

    def engines(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def stop(self) -> str:
        """End it; what it wrote to stderr."""
        self.process.terminate()
        return self.process.communicate(timeout=60)[1]


def wait_for(question: Callable[[], Any], seconds: float = 60) -> Any:
    """The first answer that is not empty."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(0.05)
    raise TimeoutError("what was waited for did not happen")


def start(path: Path, *arguments: str) -> Server:
    command = [sys.executable, "-m", "edgepack", "serve", str(path), "--port", "0", "--threads", "1", "--json"]
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=30)[1]
    return Server(process, json.loads(line)["url"])


def model(folder: Path, name: str = NAME, template: str | None = TOOL_TEMPLATE, **shape: Any) -> Path:
    """A random Llama that chats."""
    extra = {} if template is None else {"tokenizer.chat_template": string(template)}
    return write_random(folder / f"{name}.gguf", Shape(**{"context": 1024, "extra": extra, **shape}))


def ask(
    server: Server, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, Any]:
    """Status and JSON (or text) of an answer. `body` is an object, bytes, or None for GET."""
    status, answer, _headers = ask_all(server, path, body, headers, method)
    return status, answer


def ask_all(
    server: Server, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, Any, dict[str, str]]:
    """As `ask`, and the answer's headers with small letters."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method or ("GET" if data is None else "POST"), path, data, headers or {})
        answer = connection.getresponse()
        text = answer.read().decode()
        told = {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()
    is_json = told.get("content-type", "").startswith("application/json")
    return answer.status, json.loads(text) if is_json else text, told


def chat(**more: Any) -> dict[str, Any]:
    """A request of a short, greedy answer."""
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0, **more}
