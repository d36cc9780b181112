"""The knowledge test: what a model knows of documents, by questions with choices, scored without a network.

Right is by likelihood, the right choice above the others, and where a term is asked also by what the model writes
itself, normalised as SQuAD's evaluation has it (arXiv 1606.05250). Writing the questions is left to others.
"""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.fidelity.tasks.runner import answer
from edgepack.edge.fidelity.tasks.tasks import ChoiceItem, Comparison, MatchItem, compare_answers
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgepack.edge.fidelity.scorers.gguf import GGUFScorer
    from edgepack.progress import Progress

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MOST_WRITTEN = 64  # tokens of an answer
_SPARE = 4  # tokens: an answer may be spelled with a few more


@dataclass(frozen=True)
class Known:
    """One model's answers.

    Attributes:
        likely: kind → for each of its items whether the right choice was the likeliest, per byte of its text.
        written: kind → for each of its items whether what the model wrote begins with the answer.
        chance: kind → the share that guessing gives.
    """

    likely: Mapping[str, tuple[bool, ...]]
    written: Mapping[str, tuple[bool, ...]]
    chance: Mapping[str, float]

    def share(self, kind: str | None = None) -> float:
        """Right by likelihood: of a kind, or of all items."""
        found = [right for name, every in self.likely.items() if kind in (None, name) for right in every]
        return sum(found) / len(found)

    def against(self, after: Known, kind: str | None = None) -> Comparison:
        """Held against the same items' answers afterwards."""
        names = [name for name in self.likely if kind in (None, name)]
        ours, theirs = ([right for name in names for right in each.likely[name]] for each in (self, after))
        return compare_answers(ours, theirs)


def normalised(text: str) -> str:
    """Small letters without punctuation, articles and double spaces; compatible forms are one."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(" " if letter in string.punctuation else letter for letter in text)
    return " ".join(_ARTICLES.sub(" ", text).split())


def begins_with(text: str, wanted: str) -> bool:
    """Whether a text begins with an answer, both normalised, and ends a word there."""
    ours, theirs = normalised(text), normalised(wanted)
    return bool(theirs) and (ours == theirs or ours.startswith(f"{theirs} "))


def knowledge_test(
    items: Sequence[tuple[str, ChoiceItem | MatchItem]], scorer: GGUFScorer, progress: Progress = silent
) -> Known:
    """Ask one model.

    Args:
        items: (kind, item). Items whose right choice is a few words, and those without choices, are written too.
        scorer: the model, with its adapters.
        progress: told of each item.

    Raises:
        UsageError: an item is longer than the model's context.
        NumericError: NaN or +inf among the logits.
    """
    likely: dict[str, list[bool]] = {}
    written: dict[str, list[bool]] = {}
    chances: dict[str, list[float]] = {}
    with progress("asking", len(items), " questions") as advance:
        for number, (kind, item) in enumerate(items):
            chances.setdefault(kind, []).append(1 / len(item.endings) if isinstance(item, ChoiceItem) else 0.0)
            asked = _asked(item)
            right = asked is not None and begins_with(_written(scorer, *asked), asked[1])
            if asked is not None:
                written.setdefault(kind, []).append(right)
            if isinstance(item, ChoiceItem):
                right = answer(item, scorer, number).right["acc_norm"]
            likely.setdefault(kind, []).append(right)
            advance(1)
    return Known(
        {kind: tuple(found) for kind, found in likely.items()}, {kind: tuple(found) for kind, found in written.items()},
        {kind: float(np.mean(found)) for kind, found in chances.items()},
    )  # fmt: skip


def _asked(item: ChoiceItem | MatchItem) -> tuple[str, str] | None:
    """(what comes before, the answer) where a model can be asked to write it."""
    if isinstance(item, MatchItem):
        return item.prompt, item.answer
    ending = item.endings[item.label]
    return (item.context, ending) if len(ending.split()) <= 4 else None


def _written(scorer: GGUFScorer, prompt: str, wanted: str) -> str:
    tokens = scorer.tokenizer.tokenize(prompt)
    count = min(_MOST_WRITTEN, len(scorer.tokenizer.tokenize(f" {wanted}")) + _SPARE)
    return "".join(map(scorer.tokenizer.piece, scorer.continue_greedily(tokens, count).tolist()))
