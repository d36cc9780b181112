"""Tasks with right answers: items from local files, how they are scored, and whether two models differ on them.

Pure functions and values; running a model over items is `tasks_runner`'s.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import UsageError
from edgepack.files.source import as_object
from edgepack.text_file import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_EXACT = 2000  # discordant pairs up to which McNemar's test is summed exactly


@dataclass(frozen=True)
class ChoiceItem:
    """A context and endings of which one is right: HellaSwag's shape.

    Attributes:
        context: what comes before.
        endings: at least two; each is scored as it stands, after one space unless it brings its own.
        label: index of the right one.
    """

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class MatchItem:
    """A prompt whose greedy continuation must be the answer.

    Attributes:
        prompt: what comes before.
        answer: expected text; white space at both ends does not count.
    """

    prompt: str
    answer: str


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items.

    Attributes:
        items: how many.
        reference, candidate: share that each answers rightly.
        lost: items that only the reference answers rightly.
        gained: items that only the candidate answers rightly.
        p_value: McNemar's, two-sided: how likely so uneven a split of the differing items is by chance.
    """

    items: int
    reference: float
    candidate: float
    lost: int
    gained: int
    p_value: float


def own_tasks() -> dict[str, Path]:
    """Tasks that ship with edgepack and need no network: name → file of items."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.jsonl"))}


def read_items(path: Path) -> list[ChoiceItem | MatchItem]:
    """Items of a JSONL file, one object a line.

    Multiple choice: `ctx` (or `query`, `question`, `prompt`), `endings` (or `choices`) and `label` (or `gold`, or
    `answer`) as the right one's number; `answer` may be its text too. Exact match: `prompt` (or `question`) and
    `answer` as text.

    Raises:
        UsageError: not such a file; the text names the line and the field.
    """
    return [item for _number, item in read_numbered_items(path)]


def read_numbered_items(path: Path) -> list[tuple[int, ChoiceItem | MatchItem]]:
    """As `read_items`, each with the number of its line, from 1."""
    lines = read_text(path).splitlines()
    items = [
        (number, _read_item(line, f"{path}, line {number}")) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not items:
        raise UsageError(f"task '{path}': no items")
    return items


def _read_item(line: str, where: str) -> ChoiceItem | MatchItem:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    raw = as_object(value, where)
    if "endings" in raw or "choices" in raw:
        return _choice(raw, where)
    return MatchItem(_text(raw, ("prompt", "question", "ctx"), where), _text(raw, ("answer",), where))


def _choice(raw: dict[str, Any], where: str) -> ChoiceItem:
    context = _text(raw, ("ctx", "query", "question", "prompt"), where)
    endings = raw.get("endings", raw.get("choices"))
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(e, str) and e for e in endings):
        raise UsageError(f"{where}: 'endings': expected at least two texts, got {endings!r}")
    label = next((raw[key] for key in ("label", "gold", "answer") if key in raw), None)
    if label == raw.get("answer") and isinstance(label, str) and label in endings:
        return ChoiceItem(context, tuple(endings), endings.index(label))
    try:
        label = int(str(label))  # HellaSwag's own files have it as text
    except ValueError:
        label = -1
    if not 0 <= label < len(endings):
        raise UsageError(f"{where}: 'label': expected 0 to {len(endings) - 1}, or as 'answer' one of the choices")
    return ChoiceItem(context, tuple(endings), label)


def _text(raw: dict[str, Any], keys: tuple[str, ...], where: str) -> str:
    for key in keys:
        if isinstance(raw.get(key), str) and raw[key]:
            return str(raw[key])
    raise UsageError(f"{where}: expected a text under one of {', '.join(keys)}")


def choose(log_likelihoods: Sequence[float], endings: Sequence[str], *, by_length: bool) -> int:
    """The ending with the highest log-likelihood (acc), or the highest per byte (acc_norm, as lm-eval has it)."""
    scores = [
        value / max(1, len(ending.encode())) if by_length else value
        for value, ending in zip(log_likelihoods, endings, strict=True)
    ]
    return max(range(len(scores)), key=scores.__getitem__)


def compare_answers(reference: Sequence[bool], candidate: Sequence[bool]) -> Comparison:
    """Hold two models' right and wrong answers to the same items against each other."""
    pairs = list(zip(reference, candidate, strict=True))
    lost = sum(ours and not theirs for ours, theirs in pairs)
    gained = sum(theirs and not ours for ours, theirs in pairs)
    n = len(pairs)
    return Comparison(n, sum(reference) / n, sum(candidate) / n, lost, gained, mcnemar(lost, gained))


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p-value of McNemar's test: exact binomial, or the continuity-corrected normal for very many pairs."""
    n = lost + gained
    if n == 0:
        return 1.0
    if n > _MAX_EXACT:
        z = max(0.0, abs(lost - gained) - 1) / math.sqrt(n)
        return math.erfc(z / math.sqrt(2))
    tail = sum(math.comb(n, k) for k in range(min(lost, gained) + 1))
    return min(1.0, float(2 * tail / (1 << n)))
