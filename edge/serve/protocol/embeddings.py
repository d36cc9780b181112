"""`/v1/embeddings`: what is asked of the engine, and its vectors as OpenAI's clients expect them.

The engine scales every vector to length 1, as OpenAI's are; `dimensions` keeps the first so many and scales again.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.serve.protocol import fields
from edgepack.edge.serve.protocol.errors import RequestError
from edgepack.edge.serve.protocol.requests import check_tokens

if TYPE_CHECKING:
    from edgepack.edge.serve.protocol.facts import ServedFacts

_MOST_TEXTS = 2048  # OpenAI's


def engine_request(body: dict[str, Any], facts: ServedFacts) -> dict[str, Any]:
    """What the engine is asked.

    Raises:
        RequestError: a field is not what it must be.
    """
    if "embedding" not in facts.tasks:
        raise RequestError(f"model: '{facts.name}' ranks texts, it gives no embeddings", "model")
    given = body.get("input")
    many = given if isinstance(given, list) and any(isinstance(item, (str, list)) for item in given) else [given]
    if not 0 < len(many) <= _MOST_TEXTS:
        raise RequestError(f"input: expected 1 to {_MOST_TEXTS} texts, got {len(many)}", "input")
    for item in many:
        if isinstance(item, list):
            check_tokens(item, "input", facts)
        elif not isinstance(item, str) or not item:
            raise fields.wrong("input", "a text or a list of texts that are not empty", item)
    fields.integer(body, "dimensions", 1, facts.n_embd)
    fields.one_of(body, "encoding_format", ("float", "base64"))
    return {"input": many}


def answer(engine: dict[str, Any], body: dict[str, Any], facts: ServedFacts) -> dict[str, Any]:
    """OpenAI's answer, of the engine's."""
    vectors = [np.asarray(item["embedding"], np.float64) for item in engine["data"]]
    if (width := body.get("dimensions")) is not None:
        vectors = [_unit(vector[:width]) for vector in vectors]
    as_base64 = body.get("encoding_format") == "base64"
    return {
        "object": "list",
        "model": facts.name,
        "data": [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_base64 else vector.tolist()}
            for index, vector in enumerate(vectors)
        ],
        "usage": engine["usage"],
    }


def _unit(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def _base64(vector: np.ndarray[Any, Any]) -> str:
    """As the `openai` client asks for it: little-endian float32 in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
