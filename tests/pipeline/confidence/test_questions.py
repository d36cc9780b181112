"""Questions of files and of texts, and when a written answer is right."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from edgepack.errors import CalibrationError, UsageError
from edgepack.pipeline.confidence.cloze import CHOICES, LEAST_CONTEXT, PASSAGE_WORDS, cloze_questions
from edgepack.pipeline.confidence.questions import is_right, read_questions

OWN_WORDS = Path(__file__).resolve().parents[2] / "data/own-words.txt"


@pytest.fixture(scope="module")
def text() -> str:
    return OWN_WORDS.read_text(encoding="utf-8")


def test_a_question_asks_the_texts_next_word_among_words_as_frequent(text: str) -> None:
    questions = cloze_questions(text, 200, 1, "own-words")
    times = Counter(text.split())
    assert len(questions) == 200
    for one in questions:
        assert one.choices[one.right] == one.answer
        assert len(set(one.choices)) == CHOICES
        assert f"{one.prompt} {one.answer}" in text
        assert LEAST_CONTEXT <= len(one.prompt.split()) < PASSAGE_WORDS
        assert {times[choice].bit_length() for choice in one.choices} == {times[one.answer].bit_length()}
        assert {len(choice) // 3 for choice in one.choices} == {len(one.answer) // 3}


def test_questions_of_a_passage_share_a_group_and_follow_one_another(text: str) -> None:
    questions = cloze_questions(text, 100, 1, "own-words")
    for before, after in itertools.pairwise(questions):
        if before.group == after.group:
            assert after.prompt.startswith(before.prompt)
        else:
            assert after.group > before.group


def test_a_seed_always_makes_the_same_questions_and_another_one_others(text: str) -> None:
    assert cloze_questions(text, 50, 1, "x") == cloze_questions(text, 50, 1, "x")
    assert cloze_questions(text, 50, 1, "x") != cloze_questions(text, 50, 2, "x")


def test_the_right_choice_stands_anywhere(text: str) -> None:
    places = Counter(one.right for one in cloze_questions(text, 400, 1, "x"))
    assert set(places) == set(range(CHOICES))
    assert min(places.values()) > 50


@pytest.mark.parametrize("text", ["", "one", "word " * 500, "\n".join(f"w{n}" for n in range(500))])
def test_a_text_that_gives_no_question_is_refused(text: str) -> None:
    with pytest.raises(CalibrationError, match=r"^t: expected text with passages"):
        cloze_questions(text, 10, 0, "t")


def test_questions_are_read_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    lines = [
        {"prompt": "a", "answer": "b"},
        {"prompt": "c", "choices": ["d", "e"], "answer": "e"},
        {"question": "f", "choices": ["g", "h"], "answer": 0},
        {"ctx": "i", "endings": ["j", "k"], "label": "1"},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines).replace("\n", "\n\n", 1))
    found = read_questions(path, chat=False)
    assert [one.where.rpartition(" ")[2] for one in found] == ["1", "3", "4", "5"]
    assert [(one.prompt, one.answer, one.choices, one.right) for one in found] == [
        ("a", "b", (), 0), ("c", "e", ("d", "e"), 1), ("f", "g", ("g", "h"), 0), ("i", "k", ("j", "k"), 1),
    ]  # fmt: skip
    assert {one.ends for one in found} == {"line"}
    assert {one.ends for one in read_questions(path, chat=True)} == {"turn"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "line 2: expected a JSON object"),
        ("{", "line 2: not JSON"),
        ('{"prompt": "a"}', "line 2: expected a text under one of answer"),
        ('{"answer": "a"}', "line 2: expected a text under one of prompt"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": "d"}', "line 2: 'label': expected 0 to 1"),
        ('{"prompt": "a", "choices": ["b"], "answer": "b"}', "line 2: 'endings': expected at least two texts"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "line 2: 'label': expected 0 to 1"),
    ],
)
def test_a_wrong_line_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f'{{"prompt": "a", "answer": "b"}}\n{line}\n')
    with pytest.raises(UsageError, match="q.jsonl, ") as caught:
        read_questions(path, chat=False)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("written", "answer", "ends", "right"),
    [
        (" cat", "cat", "word", True),
        ("cats", "cat", "word", False),
        ("cat sat", "cat", "word", False),
        (" Paris.", "Paris", "line", True),
        ("paris,  of course", "Paris", "line", True),
        ("Parisian", "Paris", "line", False),
        ("It is Paris", "Paris", "line", False),
        ("The capital of France is Paris.", "paris", "turn", True),
        ("It is 14.", "4", "turn", False),
        ("It is 4.", "4", "turn", True),
        ("New\n York", "new york", "turn", True),
        ("", "a", "turn", False),
        ("C++ is", "C++", "line", True),
    ],
)
def test_when_a_written_answer_is_right(written: str, answer: str, ends: str, right: bool) -> None:
    assert is_right(written, answer, ends) is right  # type: ignore[arg-type]
