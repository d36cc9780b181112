"""What a caller says about an answer, as the values that `edge` takes; it runs nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgepack.edge.llama.constraints.check import check_schema
from edgepack.edge.llama.options import SamplingOptions
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


def sampling_of(
    options: SamplingOptions | None, temperature: float | None, seed: int | None, json_schema: str | None
) -> SamplingOptions:
    """`options` with what was said beside them; None says nothing.

    Raises:
        UsageError: a grammar and a schema, or a schema that cannot be followed.
    """
    chosen = options or SamplingOptions()
    if temperature is not None:
        chosen = replace(chosen, temperature=temperature)
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    if json_schema is None:
        return chosen
    if chosen.grammar is not None:
        raise UsageError("grammar and JSON schema: expected one of them, got both")
    check_schema(json_schema)
    return replace(chosen, json_schema=json_schema)


def checked_message(message: Mapping[str, str]) -> dict[str, str]:
    """A copy of a message; raises UsageError where its role or content is no text."""
    if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
        raise UsageError(f"message: expected texts under role and content, got {dict(message)}")
    return {"role": message["role"], "content": message["content"]}
