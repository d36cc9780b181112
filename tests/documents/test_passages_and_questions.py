"""Passages are whole, pairs answer their headings, held-out questions have one right choice and no trained wording."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invented_canon import write_canon

from edgepack.documents.folder import Documents
from edgepack.documents.pairs import Pair, pair_of, read_pairs
from edgepack.documents.passages import MOST_CHARACTERS, Passage, passages
from edgepack.documents.questions import CHOICES, PASSAGE, TERM, held_out_questions, sampled
from edgepack.documents.sections import Section
from edgepack.edge.fidelity.tasks.tasks import ChoiceItem, read_items
from edgepack.errors import CalibrationError, UsageError
from edgepack.pipeline.adapting.canon import Canon, read_questions, write_questions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def canon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_canon(tmp_path_factory.mktemp("canon"), 24)


def test_a_short_section_is_one_passage_and_a_long_one_is_cut_between_paragraphs() -> None:
    short = Section("a.md", ("A",), "one paragraph of words\n\nanother one")
    paragraphs = [f"{number} " + "word " * 100 for number in range(6)]
    long = Section("a.md", ("B",), "\n\n".join(each.strip() for each in paragraphs))
    found = list(passages([short, long]))
    assert found[0] == Passage("a.md", ("A",), short.text, True)
    assert "\n\n".join(each.text for each in found[1:]) == long.text
    assert [each.is_first for each in found[1:]] == [True] + [False] * (len(found) - 2)


@settings(max_examples=60)
@given(st.text("ab .!?\n", min_size=20, max_size=6000))
def test_no_passage_is_too_long_and_none_says_what_the_section_does_not(text: str) -> None:
    found = list(passages([Section("a.txt", (), text)]))
    assert all(len(each.text) <= MOST_CHARACTERS for each in found)
    assert sum(len("".join(each.text.split())) for each in found) <= len("".join(text.split()))


def test_a_heading_that_asks_is_the_question_and_any_other_is_asked_about() -> None:
    asked = Passage("a.md", ("Harbour", "Who built it?"), "Orin did.\n\nIn 1734.", True)
    assert pair_of(asked) == Pair("Who built it?", "Orin did.\n\nIn 1734.")
    told = Passage("a.md", ("Harbour", "Ships"), "There are two.", True)
    assert pair_of(told) == Pair("What is said about “Ships” in Harbour?", "There are two.")
    assert pair_of(Passage("a.md", ("Harbour", "Ships"), "And more.", False)) is None
    assert pair_of(Passage("a.txt", (), "Words.", True)) is None


def test_pairs_are_read_under_any_of_their_names(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "a?", "answer": "b"}\n\n{"prompt": "c?", "completion": " d "}\n')
    assert list(read_pairs(path)) == [Pair("a?", "b"), Pair("c?", "d")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"question": "a?"}', r"line 2: field 'answer' is missing"),
        ('{"answer": "b"}', r"line 2: field 'question' is missing"),
        ('{"question": "", "answer": "b"}', r"line 2: 'question': expected a text"),
        ('{"question": "a", "answer": 3}', r"line 2: 'answer': expected a text"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ("{", "line 2: expected JSON"),
        ("[" * 100_000, "line 2: expected JSON"),
    ],
)
def test_a_bad_pair_is_refused_by_file_and_line(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"question": "a?", "answer": "b"}\n' + line + "\n")
    with pytest.raises(UsageError, match=rf"pairs\.jsonl, {told}"):
        list(read_pairs(path))


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("\n\n")
    with pytest.raises(UsageError, match="got none"):
        list(read_pairs(tmp_path / "pairs.jsonl"))


def test_questions_are_of_both_kinds_and_right_answers_stand_in_the_documents(canon: Path) -> None:
    every = sampled(passages(Documents(canon).sections()), 0)
    found = held_out_questions(every, 40, 0)
    assert {each.kind for each in found} == {TERM, PASSAGE}
    below = {each.title: " ".join(each.text.split()) for each in every}
    for each in found:
        assert len(set(each.endings)) == CHOICES
        title = each.context.partition("“")[2].partition("”")[0]
        answer = each.endings[each.label]
        assert [other for other in each.endings if other in below[title]] == [answer]
        if each.kind == TERM:
            assert f"{each.context.partition('”: ')[2]} {answer}" in below[title]


def test_the_same_seed_asks_the_same_and_another_asks_otherwise(canon: Path) -> None:
    every = list(passages(Documents(canon).sections()))
    assert held_out_questions(every, 20, 1) == held_out_questions(every, 20, 1)
    assert held_out_questions(every, 20, 1) != held_out_questions(every, 20, 2)


def test_right_choices_stand_at_every_place(canon: Path) -> None:
    found = held_out_questions(list(passages(Documents(canon).sections())), 48, 0)
    assert {each.label for each in found} == set(range(CHOICES))


def test_no_held_out_question_has_the_wording_of_an_example(canon: Path) -> None:
    every = list(passages(Documents(canon).sections()))
    asked = {each.context for each in held_out_questions(every, 100, 0)}
    learnt = [each.written for each in every] + [pair.question for each in every if (pair := pair_of(each))]
    assert not [question for question in asked if any(question in text for text in learnt)]


def test_a_sample_keeps_the_order_and_as_many_as_there_are(canon: Path) -> None:
    every = list(passages(Documents(canon).sections()))
    assert sampled(every, 0) == every
    few = sampled(every, 0, 5)
    assert len(few) == 5
    assert few == [each for each in every if each in few]


def test_documents_about_which_nothing_can_be_asked_are_refused() -> None:
    with pytest.raises(CalibrationError, match="passages to ask about"):
        held_out_questions([Passage("a.txt", (), "no names here, and no numbers", True)], 10, 0)


def test_questions_are_written_in_the_form_that_tasks_have(canon: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "Who?", "answer": "Orin"}\n{"ctx": "It is", "endings": ["a", "b"], "label": 1}\n')
    lesson = Canon(canon, questions=own)
    made, path = lesson.ask(10, 0), tmp_path / "questions.jsonl"
    write_questions(made, lesson.given(), path)
    items = read_questions(path)
    assert [item for _kind, item in items] == read_items(path)
    assert [kind for kind, _item in items] == [each.kind for each in made] + ["given", "given"]
    assert items[0][1] == ChoiceItem(made[0].context, made[0].endings, made[0].label)
    assert json.loads(path.read_text().splitlines()[0])["document"].startswith("towns-")
