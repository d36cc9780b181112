"""Makes the items of `edgepack evaluate --task hellaswag`: passages' own next sentences among sentences from elsewhere.

    python tools/story_endings.py tools/text/passages.txt edge/fidelity/tasks/hellaswag.jsonl

The form is HellaSwag's (Zellers et al., 2019: `ctx`, four `endings`, `label`), the text is in the public domain. Wrong
endings are sentences of other passages of about the same length, so that neither length nor fluency gives them away;
HellaSwag itself has them written and filtered against models, so these items are easier. Nothing is random: the same
passages make the same items.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path

_ENDINGS = 4
_LEAST_CONTEXT = 60  # characters; shorter contexts take one more sentence in front
_LONGEST_ENDING = 330
_ABBREVIATIONS = re.compile(r"\b(Mr|Mrs|Dr|St)\.$")


def sentences(passage: str) -> list[str]:
    """A passage's sentences; a closing quotation mark belongs to the sentence before it."""
    found = [""]
    for piece in re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"'])\s+(?=[A-Z\"])", passage):
        joined = bool(found[-1]) and (_ABBREVIATIONS.search(found[-1]) or found[-1].count('"') % 2)
        found = [*found[:-1], f"{found[-1]} {piece}".strip()] if joined or not found[-1] else [*found, piece]
    return found


def passages(text: str) -> list[list[str]]:
    """The sentences of every passage."""
    blocks = [[line for line in block.splitlines() if not line.startswith("#")] for block in text.split("\n\n")]
    return [sentences(" ".join(lines)) for lines in blocks if lines]


def items(found: list[list[str]]) -> list[dict[str, object]]:
    """One item for every sentence with enough of a context before it."""
    made: list[dict[str, object]] = []
    for number, passage in enumerate(found):
        others = [sentence for index, other in enumerate(found) if index != number for sentence in other]
        for index in range(1, len(passage)):
            first = next(
                (i for i in range(index - 1, -1, -1) if len(" ".join(passage[i:index])) >= _LEAST_CONTEXT), None
            )
            if first is None or not 20 <= len(passage[index]) <= _LONGEST_ENDING:
                continue
            made.append(_item(" ".join(passage[first:index]), passage[index], others))
    return made


def _item(context: str, ending: str, others: list[str]) -> dict[str, object]:
    def order(text: str) -> str:
        return hashlib.sha256(f"{context}\0{text}".encode()).hexdigest()

    near = sorted(others, key=lambda text: (abs(len(text) - len(ending)), text))[:12]
    wrong = sorted(dict.fromkeys(near), key=order)[: _ENDINGS - 1]
    endings = sorted([ending, *wrong], key=lambda text: order(text)[::-1])
    return {"ctx": context, "endings": endings, "label": endings.index(ending)}


def main() -> None:
    """Read passages, write items."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("passages", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    made = items(passages(options.passages.read_text(encoding="utf-8")))
    lines = (json.dumps(item, ensure_ascii=False) for item in made)
    options.output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{options.output}: {len(made)} items")


if __name__ == "__main__":
    main()
