"""instructor, in the ways that it has of asking for an object."""

from __future__ import annotations

import instructor
import openai
from features import arguments, run
from pydantic import BaseModel

url, model = arguments()
plain = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "max_retries": 0}


class Painted(BaseModel):
    """What was painted."""

    color: bool
    large: bool


def with_mode(mode: instructor.Mode) -> None:
    answer = instructor.from_openai(plain, mode=mode).chat.completions.create(**asked, response_model=Painted)
    assert isinstance(answer, Painted)


run(
    {
        "JSON schema": lambda: with_mode(instructor.Mode.JSON_SCHEMA),
        "tools required": lambda: with_mode(instructor.Mode.TOOLS),
    }
)
