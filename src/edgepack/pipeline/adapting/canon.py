"""What is taught and what is asked: a folder of documents as examples, and the held-out questions about it in a file.

The questions are written before anything is learnt; no example repeats the wording of one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.documents.folder import Documents
from edgepack.documents.pairs import pair_of, read_pairs
from edgepack.documents.passages import passages
from edgepack.documents.questions import held_out_questions, sampled
from edgepack.edge.fidelity.tasks.tasks import ChoiceItem, MatchItem, read_items
from edgepack.errors import UsageError
from edgepack.files.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edgepack.documents.pairs import Pair
    from edgepack.documents.passages import Passage
    from edgepack.documents.questions import HeldOut
    from edgepack.pipeline.adapting.examples import Example, Renderer

GIVEN = "given"
"""The kind of a user's own questions."""


@dataclass(frozen=True)
class Canon:
    """Documents, and pairs that a user adds.

    Attributes:
        folder: of the documents.
        pairs: a JSONL of questions and answers, or None.
        questions: a JSONL of held-out questions of the user's own, as `edgepack evaluate` reads them, or None.
    """

    folder: Path
    pairs: Path | None = None
    questions: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """All that is read."""
        return [self.folder, *(path for path in (self.pairs, self.questions) if path is not None)]

    def check(self) -> tuple[str, ...]:
        """Read all of it once; a line for each file that was passed over.

        Raises:
            UsageError: no text, a document that cannot be read, a pair or question that lacks a field, by its line.
            DependencyError: a reader's package is not installed.
        """
        documents = Documents(self.folder)
        for _section in documents.sections():
            pass
        if self.pairs is not None:
            for _pair in read_pairs(self.pairs):
                pass
        self.given()
        return tuple(documents.passed_over)

    def passages(self) -> Iterator[Passage]:
        """Every passage, read anew."""
        return passages(Documents(self.folder).sections())

    def examples(self, renderer: Renderer) -> Iterator[Example]:
        """All that is learnt: passages, pairs of their headings, the user's pairs; one document's at a time."""
        for passage in self.passages():
            yield from renderer.passage(passage)
            pair = pair_of(passage)
            if pair is not None:
                yield from renderer.pair(pair)
        for pair in self.user_pairs():
            yield from renderer.pair(pair)

    def user_pairs(self) -> Iterator[Pair]:
        """The user's."""
        return iter(()) if self.pairs is None else read_pairs(self.pairs)

    def given(self) -> list[ChoiceItem | MatchItem]:
        """The user's own held-out questions."""
        return [] if self.questions is None else read_items(self.questions)

    def ask(self, count: int, seed: int) -> list[HeldOut]:
        """Held-out questions about the documents.

        Raises:
            CalibrationError: the documents give none, and the user neither.
        """
        return held_out_questions(sampled(self.passages(), seed), count, seed)


def write_questions(made: Sequence[HeldOut], given: Sequence[ChoiceItem | MatchItem], path: Path) -> None:
    """Write questions to a JSONL file that `read_questions` and `edgepack evaluate --task` read."""
    lines = [json.dumps(each.json(), ensure_ascii=False) for each in made]
    lines += [json.dumps({**_told(each), "kind": GIVEN}, ensure_ascii=False) for each in given]
    with atomic_output(path) as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def _told(item: ChoiceItem | MatchItem) -> dict[str, object]:
    if isinstance(item, MatchItem):
        return {"prompt": item.prompt, "answer": item.answer}
    return {"ctx": item.context, "endings": list(item.endings), "label": item.label}


def read_questions(path: Path) -> list[tuple[str, ChoiceItem | MatchItem]]:
    """(kind, item) of each line; raises UsageError as `read_items`."""
    items = read_items(path)
    kinds = [json.loads(line).get("kind", GIVEN) for line in path.read_text(encoding="utf-8").splitlines() if line]
    if len(kinds) != len(items):
        raise UsageError(f"{path}: expected a question on each line")
    return list(zip(map(str, kinds), items, strict=True))
