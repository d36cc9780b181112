"""How sure an answer is, on its way through the server: asked of the engine, told to the client, nothing else changed.

The engine is asked for the likeliest tokens at each place; the client gets of them what it asked for itself. What they
say of an answer is `edge.confidence`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.edge.confidence.features import TOLD
from edgepack.edge.llama.chances import told_chances

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from edgepack.edge.confidence.record import Fitted, Form
    from edgepack.edge.llama.chances import TokenChances

FIELD = "edgepack"  # of a choice, a message or a response
CONFIDENCE_HEADER, ROUTE_HEADER = "X-Edgepack-Confidence", "X-Edgepack-Route"
_USUAL = 20  # alternatives that llama.cpp tells where a chat asks for logprobs alone


class Confident:
    """One request whose answers are judged; changes its body so that the engine tells what is needed.

    Args:
        body: a checked chat or completion, on its way to the engine.
        fitted: the calibration for its form.
        chat: whether it is a chat.
    """

    def __init__(self, body: dict[str, Any], fitted: Fitted, *, chat: bool) -> None:
        self._fitted, self._chat = fitted, chat
        self._asked = _asked(body, chat=chat)
        self._tokens: dict[int, list[TokenChances]] = {}
        needed = max(self._asked, TOLD)
        if chat and body.get("logprobs"):
            body["top_logprobs"] = needed
        else:
            # llama.cpp's own field: `logprobs` it refuses beside tools, though it has them.
            body.pop("logprobs", None)
            body["n_probs"] = needed

    async def judged(
        self, stream: AsyncIterator[tuple[str, dict[str, Any]]]
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """The engine's chunks; each choice's last one carries the verdict under `FIELD`."""
        async for name, value in stream:
            for choice in value.get("choices") or ():
                self._look(choice)
            yield name, value

    def _look(self, choice: dict[str, Any]) -> None:
        tokens = self._tokens.setdefault(choice.get("index", 0), [])
        told = choice.get("logprobs")
        if told:
            tokens += [told_chances(one) for one in told.get("content") or ()]
            self._give_back(choice, told)
        if choice.get("finish_reason") is not None:
            choice[FIELD] = self._fitted.judge(tokens).json()

    def _give_back(self, choice: dict[str, Any], told: dict[str, Any]) -> None:
        """Leave the client what it asked for."""
        if self._asked:
            for one in told.get("content") or ():
                one["top_logprobs"] = one.get("top_logprobs", [])[: self._asked]
        elif self._chat:
            del choice["logprobs"]
        else:
            choice["logprobs"] = None


def _asked(body: dict[str, Any], *, chat: bool) -> int:
    """How many alternatives the client wants to see of each token; 0 where it wants no logprobs."""
    own = int(body.get("n_probs") or 0)
    if not chat:
        return int(body.get("logprobs") or 0) or own
    return int(body.get("top_logprobs", _USUAL)) if body.get("logprobs") else own


def verdict_headers(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Headers that tell the verdict of a whole answer; none where it has several answers, or no verdict."""
    choices = answer.get("choices", [answer])
    told = choices[0].get(FIELD) if len(choices) == 1 else None
    if not told:
        return []
    headers = [(ROUTE_HEADER, str(told["route"]))]
    if told["confidence"] is not None:
        headers.append((CONFIDENCE_HEADER, f"{told['confidence']:.4f}"))
    return headers


def confidence_facts(fitted: Mapping[Form, Fitted]) -> dict[str, Any]:
    """What the server tells of its model's confidence: each form's threshold and measured figures."""
    return {
        form: {"method": one.calibrator.method, "threshold": one.threshold, "lengths": list(one.lengths),
               "figures": dict(one.figures)}
        for form, one in fitted.items()
    }  # fmt: skip
