"""Renders untrusted chat templates in a process of its own: one JSON request a line in, one JSON answer a line out.

Jinja's sandbox keeps a template from Python's internals and from files; this process, which `chat_template` kills
when it takes too long, keeps it from the machine's time and memory. It imports nothing of edgepack.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from typing import Any, NoReturn

_MEMORY_BYTES = 1 << 30
_OUTPUT_CHARACTERS = 8 << 20
_REFUSED = frozenset(
    {"open", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "os.mkdir"}
)
_REFUSED_FAMILIES = ("socket.", "subprocess.", "ctypes.", "shutil.", "os.spawn")


class _TemplateRefusalError(Exception):
    """What a template raises on purpose with raise_exception()."""


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateRefusalError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_options: Any) -> str:
    """Hugging Face's `tojson`: no escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _environment() -> Any:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Hugging Face's `{% generation %}`, which marks the assistant's text for training: passed through."""

        tags = {"generation"}  # noqa: RUF012 - the extension protocol wants a plain set

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

        def _pass(self, caller: Any) -> Any:
            return caller()

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_now)
    return environment


def _limit_resources() -> None:
    """Bound memory where the system can (not on Windows: there only time is bounded); refuse files and more."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    libraries = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(libraries):
            return  # a module of Python's own that was not imported yet
        if event in _REFUSED or event.startswith(_REFUSED_FAMILIES):
            raise PermissionError(f"a template may not use {event}")

    sys.addaudithook(refuse)


def _render(environment: Any, request: dict[str, Any]) -> str:
    template = environment.from_string(request["template"])
    parts, length = [], 0
    for part in template.generate(**request["variables"]):
        parts.append(part)
        length += len(part)
        if length > _OUTPUT_CHARACTERS:
            raise _TemplateRefusalError(f"it writes more than {_OUTPUT_CHARACTERS} characters")
    return "".join(parts)


def _answer(environment: Any, line: str) -> dict[str, str]:
    try:
        return {"text": _render(environment, json.loads(line))}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # noqa: BLE001 - whatever a template does wrong is the answer
        number = getattr(error, "lineno", None)
        where = f"line {number}: " if number else ""
        return {"error": f"{where}{error or type(error).__name__}"}


def main() -> None:
    """Answer requests until the input ends."""
    environment = _environment()
    for template in ("{{ 1 | tojson }}", "{{ raise_exception('') }}", "{% broken"):  # imports what is lazy
        _answer(environment, json.dumps({"template": template, "variables": {}}))
    _limit_resources()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(environment, line)), flush=True)


if __name__ == "__main__":
    main()
