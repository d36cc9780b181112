"""Conversations → prompts by a model's own Jinja template, or by one of llama.cpp's known templates by name.

Templates come with models that nobody has read: they are rendered by `chat_template_worker`, under limits of time
and memory. What is done with a prompt is `chat`'s.
"""

from __future__ import annotations

import ctypes
import json
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from edgepack.edge.llama.libraries import ChatMessage, llama_library
from edgepack.errors import DependencyError, TemplateError, UsageError
from edgepack.gguf import keys
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.gguf.reader import GGUFHeader

_RENDER_SECONDS = 5.0
_START_SECONDS = 60.0  # importing Jinja on a machine that is busy
_QUESTION, _ANSWER, _NEXT = "edgepack question", "edgepack answer", "edgepack next"

Message = dict[str, str]  # role (system, user or assistant) and content


class ChatTemplate(Protocol):
    """Turns messages into the text that a model was trained to answer."""

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The prompt; with `add_generation_prompt` it ends where the assistant's answer begins.

        Raises:
            TemplateError: the template fails, refuses the messages or takes too long.
        """
        ...


@dataclass(frozen=True)
class SpecialTokens:
    """Spellings that templates refer to; empty where a model has none."""

    bos: str = ""
    eos: str = ""


def special_tokens(header: GGUFHeader) -> SpecialTokens:
    """The spellings in a checked header, so that a template can be tried before the model is loaded."""
    tokens = header.get(keys.TOKENS) or []

    def spelling(name: str) -> str:
        number = header.get(f"{keys.TOKENIZER}{name}_token_id")
        return str(tokens[number]) if isinstance(number, int) and 0 <= number < len(tokens) else ""

    return SpecialTokens(spelling("bos"), spelling("eos"))


class JinjaTemplate:
    """A template in Jinja, rendered in a worker process that lives until `close`.

    Args:
        source: the template.
        special: the model's special tokens.
        label: names it in messages.
    """

    def __init__(self, source: str, special: SpecialTokens | None = None, label: str = "chat template") -> None:
        self._source = source
        self._special = special or SpecialTokens()
        self._label = label
        self._worker: _Worker | None = None
        self._lock = threading.Lock()  # the worker is asked one thing at a time, a server asks from several threads

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """As `ChatTemplate.render`."""
        variables = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._special.bos,
            "eos_token": self._special.eos,
            "tools": None,
        }
        with self._lock:
            if self._worker is None:
                self._worker = _Worker()
            answer = self._worker.ask({"template": self._source, "variables": variables}, _RENDER_SECONDS)
            if answer is None:
                self.close()
        if answer is None:
            raise TemplateError(f"{self._label}: it does not end within {_RENDER_SECONDS:.0f} s or uses up the memory")
        if "error" in answer:
            raise TemplateError(f"{self._label}: {answer['error']}")
        return str(answer["text"])

    def close(self) -> None:
        """End the worker; a later `render` starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


class _Worker:
    """The process that renders; it is asked one thing at a time."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("template_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the answer, not for the worker
        )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        if self._next(_START_SECONDS) is None:
            self.kill()
            raise TemplateError("chat template: the process that renders templates did not start")

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._answers.put(line)
        self._answers.put("")

    def _next(self, seconds: float) -> dict[str, Any] | None:
        try:
            line = self._answers.get(timeout=seconds)
            return dict(json.loads(line)) if line else None
        except (queue.Empty, ValueError):
            return None

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """The worker's answer; None when it died or is late."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            return None
        return self._next(seconds)

    def kill(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class NamedTemplate:
    """One of the templates that llama.cpp knows by name, such as `chatml` or `llama3`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """As `ChatTemplate.render`."""
        library = llama_library()
        texts = [(message["role"].encode(), message["content"].encode()) for message in messages]
        chat = (ChatMessage * len(texts))(*(ChatMessage(*pair) for pair in texts))
        size = 2 * sum(len(role) + len(content) for role, content in texts) + 1024
        while True:
            buffer = ctypes.create_string_buffer(size)
            arguments = (self._name.encode(), chat, len(texts), add_generation_prompt, buffer, size)
            length = int(library.llama_chat_apply_template(*arguments))
            if length < 0:
                raise TemplateError(f"template '{self._name}': llama.cpp cannot apply it to these messages")
            if length <= size:
                return buffer.raw[:length].decode("utf-8", "replace")
            size = length

    def close(self) -> None:
        """Nothing to free."""


def named_templates() -> list[str]:
    """Names that llama.cpp knows."""
    try:
        library = llama_library()
    except DependencyError:  # xllamacpp's wheel for Windows exports no function
        return []
    count = int(library.llama_chat_builtin_templates(None, 0))
    names = (ctypes.c_char_p * count)()
    library.llama_chat_builtin_templates(names, count)
    return sorted((name or b"").decode() for name in names)


def choose_template(
    wanted: str | None, own: str | None, special: SpecialTokens, label: str
) -> JinjaTemplate | NamedTemplate:
    """The template to use: the one asked for, else the model's own; never a guess.

    Args:
        wanted: a name that llama.cpp knows, the path of a Jinja file, or None.
        own: the model's template, or None.
        special: the model's special tokens.
        label: names the model in messages.

    Raises:
        TemplateError: the model has none and none was asked for, or it is broken.
        UsageError: the name is unknown.
    """
    template = _wanted(wanted, special) if wanted is not None else _own(own, special, label)
    try:
        template.render([{"role": "user", "content": _QUESTION}])
    except TemplateError as error:
        template.close()
        hint = "" if wanted is not None else "; choose another with --template NAME (such as chatml)"
        raise TemplateError(f"{error}{hint}") from None
    return template


def _own(own: str | None, special: SpecialTokens, label: str) -> JinjaTemplate:
    if own is None:
        known = ", ".join(named_templates())
        raise TemplateError(f"{label}: the model has no chat template; choose one with --template NAME: {known}")
    return JinjaTemplate(own, special, f"{label}: chat template")


def _wanted(wanted: str, special: SpecialTokens) -> JinjaTemplate | NamedTemplate:
    if wanted in named_templates():
        return NamedTemplate(wanted)
    path = Path(wanted)
    if path.is_file():
        return JinjaTemplate(read_text(path), special, wanted)
    raise UsageError(f"template '{wanted}': expected a file or one of {', '.join(named_templates())}")


def stop_texts(template: ChatTemplate) -> list[str]:
    """Texts at which an answer ends, besides end-of-turn tokens: what the template puts behind an answer.

    A model whose vocabulary has no token for them writes them as text; nobody wants to read them.
    """
    conversation = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _NEXT},
    ]
    try:
        text = template.render(conversation)
    except TemplateError:
        return []
    _before, found, after = text.partition(_ANSWER)
    between, next_found, _rest = after.partition(_NEXT)
    if not (found and next_found) or not between.strip():
        return []
    first = between.strip().splitlines()[0].rstrip()
    return [first if between[0] not in "\r\n" else f"\n{first}"]
