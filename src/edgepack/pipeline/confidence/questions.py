"""Questions whose answers are known: read from a file, or made of any text. How they are asked is `asking`'s."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgepack.edge.fidelity.tasks.tasks import ChoiceItem, read_numbered_items

if TYPE_CHECKING:
    from pathlib import Path

Ends = Literal["word", "line", "turn"]
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        where: names it in messages.
        prompt: what comes before the answer.
        answer: the right one.
        choices: from which the likeliest is picked, the right one among them; empty where none are given.
        right: its index among them.
        group: questions of one group share text, so that they are fitted on or judged by together.
        ends: where a written answer ends: with its first word, its line, or the model's turn.
    """

    where: str
    prompt: str
    answer: str
    choices: tuple[str, ...]
    right: int
    group: int
    ends: Ends


def read_questions(path: Path, *, chat: bool) -> list[Question]:
    """Questions of a JSONL file, as `edge.fidelity.tasks` reads them: `prompt`, `answer`, perhaps `choices`.

    Args:
        path: of the file.
        chat: they are asked through a chat template, so that an answer ends with the turn, not with its line.

    Raises:
        UsageError: not such a file; the text names the line and the field.
    """
    ends: Ends = "turn" if chat else "line"
    found = []
    for group, (number, item) in enumerate(read_numbered_items(path)):
        where = f"{path}, line {number}"
        if isinstance(item, ChoiceItem):
            answer = item.endings[item.label]
            found.append(Question(where, item.context, answer, item.endings, item.label, group, ends))
        else:
            found.append(Question(where, item.prompt, item.answer, (), 0, group, ends))
    return found


def is_right(written: str, answer: str, ends: Ends) -> bool:
    """Whether a written answer is the right one: case and the kind of white space do not count.

    A word must be the answer itself; a line must begin with it, and a turn hold it anywhere, not as part of a word.
    """
    said, wanted = (_SPACE.sub(" ", text).strip().casefold() for text in (written, answer))
    if ends == "word":
        return said == wanted
    found = re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", said)
    return found is not None and (ends == "turn" or found.start() == 0)
