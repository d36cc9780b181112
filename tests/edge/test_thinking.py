"""Thinking and answer are told apart wherever the pieces' borders fall, and no part of a mark is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.edge.chat.thinking import ThinkingParter, opened_by


def parted(pieces: list[str], closing: str = "") -> tuple[str, str]:
    """(thinking, answer) of pieces."""
    parter = ThinkingParter(closing)
    told = [told for piece in pieces for told in parter.feed(piece)] + parter.end()
    assert all(piece.text for piece in told)
    thinking, answer = ("".join(p.text for p in told if p.thinking is wanted) for wanted in (True, False))
    return thinking, answer


@pytest.mark.parametrize(
    ("text", "closing", "expected"),
    [
        ("plain", "", ("", "plain")),
        ("", "", ("", "")),
        ("  indented", "", ("", "  indented")),
        ("<think>a</think>\n\nb", "", ("a", "b")),
        ("\n<thinking>\na<b</thinking>b </think>", "", ("\na<b", "b </think>")),
        ("<think>never ended </thi", "", ("never ended </thi", "")),
        ("inside</think>out", "</think>", ("inside", "out")),
        ("<think></think>out", "", ("", "out")),
        ("<thin>", "", ("", "<thin>")),
        ("<thin", "", ("", "<thin")),
        ("in the middle <think>x</think>", "", ("", "in the middle <think>x</think>")),
        ("<think>x</think>  \n ", "", ("x", "")),
    ],
)
def test_marks_at_the_beginning_part_an_answer(text: str, closing: str, expected: tuple[str, str]) -> None:
    assert parted([text], closing) == expected
    assert parted(list(text), closing) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", "a", " ", "\n", "<", ">"]), max_size=12))
def test_borders_of_pieces_change_nothing(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert parted(pieces) == parted([text]) == parted(list(text))
    assert parted(pieces, "</think>") == parted([text], "</think>")


@pytest.mark.parametrize(
    ("prompt", "closing"),
    [("…<|assistant|>\n<think>\n", "</think>"), ("<think></think>\n", ""), ("<think> x", ""), ("", "")],
)
def test_a_prompt_may_begin_the_thinking(prompt: str, closing: str) -> None:
    assert opened_by(prompt) == closing
