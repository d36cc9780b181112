"""Asks a file its questions through llama.cpp, as a device would run it, and notes what its answers looked like.

What follows from that is `fitting`'s; which questions there are `questions`'.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.edge.chat.completion import CompletionStream
from edgepack.edge.chat.conversation import Conversation
from edgepack.edge.confidence.choosing import pick
from edgepack.edge.confidence.features import TOLD, Observation, observe_answer
from edgepack.edge.llama.options import SamplingOptions
from edgepack.errors import UsageError
from edgepack.pipeline.confidence.questions import Question, is_right
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.edge.chat.template import ChatTemplate
    from edgepack.edge.confidence.record import Form
    from edgepack.edge.llama.engine import OpenModel
    from edgepack.progress import Progress

_GREEDY = SamplingOptions(temperature=0, chances=TOLD)
_FIRST_WORD = re.compile(r"\s*(\w+)")
WORD_TOKENS = 12  # a word's most


@dataclass(frozen=True)
class Answered:
    """One answer of the file.

    Attributes:
        question: its number, from 0.
        group: as `Question.group`.
        seen: what its log-probabilities say.
        tokens: of it.
        right: whether it is the right one.
        right_choice: index of the right choice; −1 of a written answer.
    """

    question: int
    group: int
    seen: Observation
    tokens: int
    right: bool
    right_choice: int = -1


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Attributes:
        model: an open model.
        template: asks them as chats; None continues their prompts.
        max_tokens: of a written answer.
        ctx: tokens that a question and its answer may have; a context is opened in steps, and may hold more.
        choices: score the choices that questions give; needs an engine that gives logits.
    """

    model: OpenModel
    template: ChatTemplate | None
    max_tokens: int
    ctx: int
    choices: bool = True

    @property
    def written_form(self) -> Form:
        """The form of written answers."""
        return "text" if self.template is None else "chat"


def ask(asking: Asking, questions: Sequence[Question], progress: Progress = silent) -> dict[Form, list[Answered]]:
    """Every question in every form that it allows: an answer written by the model, and the likeliest of its choices.

    Choices are asked where prompts are continued; an answer without a token says nothing and is left out.

    Raises:
        UsageError: prompt and answer are longer than the context; nothing has been asked then. Choices, and an engine
            that gives no logits.
    """
    prompts = [_prompt(asking, question) for question in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        _check_length(asking, question, prompt)
    found: dict[Form, list[Answered]] = {}
    with progress("asking", len(questions), " questions") as advance:
        for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
            if question.choices and asking.choices and asking.template is None:
                found.setdefault("choice", []).append(_picked(asking, number, question))
            if (written := _written(asking, number, question, prompt)) is not None:
                found.setdefault(asking.written_form, []).append(written)
            advance(1)
    return found


def _prompt(asking: Asking, question: Question) -> list[int]:
    if asking.template is None:
        return asking.model.tokenize(question.prompt)
    conversation = Conversation(asking.model, asking.template, _GREEDY)
    return conversation.tokens([{"role": "user", "content": question.prompt}])


def _room(asking: Asking, question: Question) -> int:
    """Tokens that a written answer may have."""
    return WORD_TOKENS if question.ends == "word" else asking.max_tokens


def _check_length(asking: Asking, question: Question, prompt: Sequence[int]) -> None:
    texts = (question.answer, *question.choices)
    longest = max(len(asking.model.tokenize(text, add_special=False)) for text in texts)
    needed = len(prompt) + max(longest, _room(asking, question))
    if needed >= (held := min(asking.ctx, asking.model.n_ctx)):
        raise UsageError(
            f"{question.where}: question and answer need {needed} tokens, the context holds {held}: "
            "give a larger --ctx, or shorter questions"
        )


def _written(asking: Asking, number: int, question: Question, prompt: Sequence[int]) -> Answered | None:
    """What the model writes, whatever the right answer is: its length must not tell of that."""
    room = _room(asking, question)
    stops = ["\n"] if question.ends == "line" else []
    if asking.template is not None:
        stops = Conversation(asking.model, asking.template, _GREEDY).all_stops
    text = ""
    with closing(CompletionStream(asking.model, prompt, _GREEDY, room, stops=stops)) as stream:
        for piece in stream:
            text += piece
            if question.ends == "word" and _word_has_ended(text):
                break
        chances = stream.result.chances
    if question.ends == "word" and (word := _FIRST_WORD.match(text)) is not None:
        text = word[0]
        chances = stream.chances_within(len(text))
    elif not text.strip():
        chances = ()
    seen = observe_answer(chances)
    if seen is None:
        return None
    return Answered(number, question.group, seen, len(chances), is_right(text, question.answer, question.ends))


def _word_has_ended(text: str) -> bool:
    """Whether something follows the first word, or there is something else in its place."""
    word = _FIRST_WORD.match(text)
    return bool(text.strip()) if word is None else word.end() < len(text)


def _picked(asking: Asking, number: int, question: Question) -> Answered:
    found = pick(asking.model, question.prompt, question.choices)
    return Answered(number, question.group, found.seen, found.tokens, found.index == question.right, question.right)
