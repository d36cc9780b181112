"""Items are read strictly, answers follow the log-likelihoods, McNemar's test equals its definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import story_endings
from hypothesis import given
from hypothesis import strategies as st
from references.scorers_of_arrays import LetterTokenizer

from edgepack.cli import execute as run
from edgepack.edge.fidelity.tasks.runner import run_task
from edgepack.edge.fidelity.tasks.tasks import (
    ChoiceItem,
    MatchItem,
    choose,
    compare_answers,
    mcnemar,
    own_tasks,
    read_items,
)
from edgepack.errors import NumericError, UsageError

if TYPE_CHECKING:
    from edgepack.edge.fidelity.scorers.scorer import Chunk

LETTERS = 64


class Alphabet:
    """After a letter comes the next one of the alphabet with probability near 1; `skill` below 0 prefers the last."""

    label = "alphabet"
    vocabulary = LETTERS
    context_limit = 40

    def __init__(self, skill: float = 9.0) -> None:
        self.skill = skill
        self.tokenizer = LetterTokenizer()

    def score(self, chunk: Chunk) -> np.ndarray:
        logits = np.zeros((chunk.scored, LETTERS), np.float32)
        logits[np.arange(chunk.scored), (chunk.tokens[chunk.first : -1] + 1) % LETTERS] = self.skill
        return logits

    def close(self) -> None:
        """Nothing to give back."""


def test_choices_and_continuations_follow_the_model() -> None:
    items = [
        ChoiceItem("BCDEF", ("GHI", "QQQ"), 0),
        ChoiceItem("BCDEF", ("ZZZ", "XAX", "GHIJ"), 2),
        MatchItem("CDEFG", "HIJ"),
        MatchItem("CDEFG", "XYZ"),
    ]
    spaced = [ChoiceItem(i.context, tuple("\n" + e for e in i.endings), i.label) for i in items[:2]]  # its own space
    result = run_task([*spaced, *items[2:]], Alphabet(), Alphabet(skill=-9.0))
    assert set(result.measures) == {"acc", "acc_norm", "exact_match"}
    assert result.measures["acc"].reference == 1.0
    assert result.measures["acc"].candidate == 0.0
    assert (result.measures["acc"].lost, result.measures["acc"].gained) == (2, 0)
    assert result.measures["exact_match"].reference == 0.5


def test_equal_models_flip_nothing() -> None:
    result = run_task([MatchItem("BCD", "EFG"), MatchItem("BCD", "AAA")], Alphabet(), Alphabet())
    assert result.measures["exact_match"].p_value == 1.0
    assert result.measures["exact_match"].lost == result.measures["exact_match"].gained == 0


def test_the_length_of_an_ending_counts_only_in_acc_norm() -> None:
    assert choose([-4.0, -3.0], ["abcdefgh", "ab"], by_length=False) == 1
    assert choose([-4.0, -3.0], ["abcdefgh", "ab"], by_length=True) == 0


def test_too_long_items_and_broken_logits_are_stated() -> None:
    with pytest.raises(UsageError, match="item 0: .* alphabet takes 40"):
        run_task([MatchItem("B" * 60, "C")], Alphabet(), Alphabet())
    with pytest.raises(NumericError, match="alphabet"):
        run_task([MatchItem("BC", "D")], Alphabet(skill=math.nan), Alphabet())


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_two_sided_binomial_test(lost: int, gained: int) -> None:
    n = lost + gained
    more = max(lost, gained)
    brute = sum(math.comb(n, k) for k in range(n + 1) if abs(k - n / 2) >= more - n / 2) / 2**n
    assert mcnemar(lost, gained) == pytest.approx(min(1.0, brute))
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_the_normal_form_continues_the_exact_one() -> None:
    assert mcnemar(960, 1040) == pytest.approx(mcnemar(961, 1041), rel=0.05)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_flips_account_for_the_difference_in_accuracy(pairs: list[tuple[bool, bool]]) -> None:
    found = compare_answers([a for a, _ in pairs], [b for _, b in pairs])
    assert (found.candidate - found.reference) * found.items == pytest.approx(found.gained - found.lost)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected a JSON object"),
        ("{}", "line 2: expected a text under one of prompt"),
        ('{"ctx": "a", "endings": ["b"], "label": 0}', "line 2: 'endings': expected at least two"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": 2}', "line 2: 'label': expected 0 to 1"),
        ('{"ctx": "a", "endings": ["b", "c"]}', "line 2: 'label': expected 0 to 1"),
        ('{"prompt": "a", "answer": 3}', "line 2: expected a text under one of answer"),
    ],
)
def test_bad_items_are_named_by_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_items(path)


def test_hellaswags_own_spelling_is_read(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"ctx": "a", "endings": ["b", "c"], "label": "1", "ind": 4}) + "\n\n", encoding="utf-8")
    assert read_items(path) == [ChoiceItem("a", ("b", "c"), 1)]


def test_the_command_compares_a_file_with_its_original(
    books: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    candidate, items = tmp_path / "f32.gguf", tmp_path / "story.jsonl"
    assert run(["export", str(books), "--target", "gguf-f32", "-o", str(candidate)]) == 0
    endings = ["the door and went out.", "qzx vv kk jjj."]
    items.write_text(json.dumps({"ctx": "He opened", "endings": endings, "label": 0}), encoding="utf-8")
    capfd.readouterr()
    arguments = [str(candidate), "--reference", str(books), "--task", str(items), "--json"]
    assert run(["evaluate", *arguments]) == 0
    told = json.loads(capfd.readouterr().out)["tasks"]["story"]
    assert told["acc"] == {"items": 1, "reference": 1.0, "candidate": 1.0, "lost": 0, "gained": 0, "p_value": 1.0}


def test_a_task_by_name_needs_the_harness(books: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from importlib.util import find_spec

    if find_spec("lm_eval") is not None:
        pytest.skip("lm-evaluation-harness is installed")
    assert run(["evaluate", "x.gguf", "--reference", str(books), "--task", "piqa"]) == 11
    assert "pip install 'edgepack[eval]'" in capfd.readouterr().err


def test_the_shipped_set_is_what_its_maker_makes_and_every_item_has_a_right_ending() -> None:
    shipped = own_tasks()["hellaswag"]
    passages = Path(story_endings.__file__).parent / "text" / "passages.txt"
    made = story_endings.items(story_endings.passages(passages.read_text(encoding="utf-8")))
    assert [json.loads(line) for line in shipped.read_text(encoding="utf-8").splitlines()] == made
    items = read_items(shipped)
    assert len(items) >= 80
    for item in items:
        assert isinstance(item, ChoiceItem)
        assert len(set(item.endings)) == 4


def test_items_tell_the_perplexity_of_the_right_ending() -> None:
    (item,) = run_task([ChoiceItem("BCDEF", ("\nGHI", "\nQQQ"), 1)], Alphabet(), Alphabet(skill=0.0)).items_in_order
    assert item.candidate_perplexity == pytest.approx(LETTERS)
    assert item.reference_perplexity is not None
    assert item.reference_perplexity > LETTERS
