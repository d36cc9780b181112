"""Errors as clients know them: OpenAI's form, and Anthropic's for `/v1/messages`. When one is due is others' to say."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# What llama.cpp says where the fault is not the request's (tools/server/server-context.cpp); every other error of a
# request that it has not begun to answer is about something in the request, whatever status it carries.
_ENGINES_OWN = re.compile(
    r"compute error|failed to (?:allocate|decode|process)|out of memory|Loading model|slot unavailable", re.IGNORECASE
)
_FIELD = re.compile(r"^Field '(?P<quoted>[\w.]+)'|^[\"'](?P<leading>\w+)[\"']")
_CONTEXT = "exceed_context_size_error"


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        message: for people; names the field.
        param: the field, or None.
        status: of HTTP.
        code: OpenAI's, for programs, or None.
        retry_after: seconds after which it may be tried again, or None.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What the answer's head says besides."""
        return [] if self.retry_after is None else [("Retry-After", str(round(self.retry_after + 0.5)))]


def openai_error(error: RequestError) -> dict[str, Any]:
    """As api.openai.com answers."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def anthropic_error(error: RequestError) -> dict[str, Any]:
    """As api.anthropic.com answers."""
    kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def error_document(path: str, error: RequestError) -> dict[str, Any]:
    """The error in the form that clients of `path` expect."""
    return anthropic_error(error) if path.startswith("/v1/messages") else openai_error(error)


@dataclass(frozen=True)
class Secrets:
    """Texts that no answer may show, such as paths of this machine; `hide` puts the model's name in their place."""

    name: str
    texts: tuple[str, ...]

    @classmethod
    def of_paths(cls, name: str, paths: Iterable[str]) -> Secrets:
        """Each path, and each one's folder."""
        found: set[str] = set()
        for path in filter(None, paths):
            folder = path.rpartition("/")[0]
            found |= {path, folder} if len(folder) > 1 else {path}
        return cls(name, tuple(sorted(found, key=len, reverse=True)))

    def hide(self, text: str) -> str:
        """`text` without them."""
        for secret in self.texts:
            text = text.replace(secret, self.name)
        return text


def engine_error(status: int, body: bytes, secrets: Secrets) -> RequestError:
    """What the engine's refusal of a request is to its client."""
    try:
        told = json.loads(body)["error"]
        message, kind = str(told["message"]), str(told.get("type"))
    except (ValueError, KeyError, TypeError):
        return RequestError("the engine failed", status=500 if status >= 500 else 400)
    if kind == _CONTEXT:
        return _context_error(told)
    if status == 501:
        status = 400  # not supported by this model: asking again does not help
    elif status >= 500 and not _ENGINES_OWN.search(message):
        status = 400
    match = _FIELD.match(message)
    param = (match["quoted"] or match["leading"]) if match else None
    return RequestError(secrets.hide(message), param or _guess(message), status=status)


def _context_error(told: Mapping[str, Any]) -> RequestError:
    text = f"the prompt has {told.get('n_prompt_tokens')} tokens, the context holds {told.get('n_ctx')}"
    return RequestError(text, "messages", code="context_length_exceeded")


def _guess(message: str) -> str | None:
    """The field that a message without one is about."""
    for word, param in (
        ("grammar", "grammar"),
        ("schema", "response_format"),
        ("Jinja", "messages"),
        ("tool", "tools"),
    ):
        if word.lower() in message.lower():
            return param
    return None
