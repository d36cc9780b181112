"""The chat as somebody at a terminal, or a pipe, has it: editing, pasting, commands, cuts, and what is shown."""

from __future__ import annotations

import json
import os
import select
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Shape, string, write_random

from edgepack.cli.chat.commands import COMMANDS, is_command
from edgepack.cli.chat.entries import Entry, is_open
from edgepack.cli.chat.history import HistoryFile
from edgepack.cli.chat.reading import LineReader
from edgepack.cli.chat.session import Session
from edgepack.cli.printable import printable
from edgepack.edge.chat.conversation import Conversation
from edgepack.edge.chat.template import JinjaTemplate
from edgepack.edge.llama.context import Context
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.edge.llama.runtime import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "chat.gguf"
    return write_random(path, Shape(extra={"tokenizer.chat_template": string(TEMPLATE)}))


@pytest.fixture(scope="module")
def model(model_path: Path) -> Iterator[LoadedModel]:
    with LoadedModel(model_path, RuntimeOptions(n_ctx=256, threads=1, max_outputs=1)) as loaded:
        yield loaded


@pytest.fixture
def conversation(model: LoadedModel) -> Iterator[Conversation]:
    template = JinjaTemplate(TEMPLATE)
    # A grammar of letters alone never ends of itself.
    yield Conversation(model, template, SamplingOptions(temperature=0, grammar="root ::= [a-z] root"), max_tokens=6)
    template.close()


def chat(conversation: Conversation, *lines: str, verbose: bool = False) -> None:
    """Say lines, as over a pipe."""
    Session(conversation, LineReader(f"{line}\n" for line in lines), verbose=verbose).run()


def contents(conversation: Conversation) -> list[str]:
    return [turn["content"] for turn in conversation.turns]


def test_lines_within_three_quotation_marks_are_one_message() -> None:
    lines = ["one\n", '"""two\n', "  /three\n", 'four"""\n', '"""five"""\n', '"""six\n', "seven\n"]
    reader = LineReader(lines)
    entries = []
    while (entry := reader.read()) is not None:
        entries.append(entry)
    assert entries == [
        Entry("one"), Entry("two\n  /three\nfour", literal=True), Entry("five", literal=True), Entry("six\nseven", literal=True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"), [('"""', True), ('"""a', True), ('"""a"""', False), ('""""""', False), ('a"""', False)]
)
def test_quotation_marks_are_open_until_others_end_them(text: str, expected: bool) -> None:
    assert is_open(text) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [("/help", True), ("/nonsense x", True), ("/?", True), ("/etc/fstab: what is it?", False), ("/ is division", False), ("//help", False), ("/Users", False)],
)  # fmt: skip
def test_only_a_word_behind_a_slash_is_a_command(line: str, expected: bool) -> None:
    assert is_command(line) is expected


def test_questions_that_begin_with_a_slash_are_asked(conversation: Conversation) -> None:
    chat(conversation, "/etc/fstab: what is it?", "//help me", '"""/bye"""', "/ bye")
    assert contents(conversation)[::2] == ["/etc/fstab: what is it?", "/help me", "/bye", "/ bye"]


def test_an_unknown_command_is_told_and_not_asked(
    conversation: Conversation, capfd: pytest.CaptureFixture[str]
) -> None:
    chat(
        conversation, "/nonsense", "/set", "/set nothing 3", "/set temperature hot", "/set seed", "/load /no/such/file"
    )
    assert conversation.turns == []
    told = capfd.readouterr().err
    for reason in (
        "/nonsense: no such command",
        "expected one of temperature",
        "got 'hot'",
        "a name and a value",
        "cannot be read",
    ):
        assert reason in told


def test_regen_answers_the_last_question_again(conversation: Conversation) -> None:
    chat(conversation, "/regen")
    assert conversation.turns == []
    chat(conversation, "one")
    before = contents(conversation)
    chat(conversation, "/set seed 1", "/set temperature 5", "/regen")
    assert contents(conversation)[0] == "one"
    assert len(conversation.turns) == 2
    assert contents(conversation) != before
    assert conversation.sampling.temperature == 5


def test_edit_puts_another_question_in_the_last_ones_place(conversation: Conversation) -> None:
    chat(conversation, "one", "two", "/edit three")
    assert contents(conversation)[::2] == ["one", "three"]
    chat(conversation, f"/edit {'é' * 300}")  # too long: the old one stays
    assert contents(conversation)[::2] == ["one", "three"]
    chat(conversation, "/edit")
    assert len(conversation.turns) == 4


def test_an_answer_cut_by_its_length_goes_on_where_it_was(
    conversation: Conversation, capfd: pytest.CaptureFixture[str]
) -> None:
    chat(conversation, "one")
    first = contents(conversation)[1]
    assert "cut: the answer reached its 6 tokens; /continue" in capfd.readouterr().err
    chat(conversation, "/continue")
    joined = contents(conversation)[1]
    conversation.reset()
    chat(conversation, "/set max_tokens 12", "one")
    assert len(conversation.turns) == 2
    assert joined == contents(conversation)[1]  # as if it had never been cut
    assert joined.startswith(first)


def test_an_answer_cut_by_the_context_says_so_and_goes_on_without_the_oldest_turns(
    conversation: Conversation, capfd: pytest.CaptureFixture[str]
) -> None:
    chat(conversation, "a first question", "/set max_tokens -1", "and a second one")
    assert "cut: the context of 256 tokens is full" in capfd.readouterr().err
    before = contents(conversation)[-1]
    chat(conversation, "/set max_tokens 4", "/continue")
    assert (
        contents(conversation) == ["and a second one", contents(conversation)[-1]]
        or "start anew" in capfd.readouterr().err
    )
    assert contents(conversation)[-1].startswith(before)


def test_what_ended_is_not_continued(conversation: Conversation, capfd: pytest.CaptureFixture[str]) -> None:
    conversation.sampling = SamplingOptions(temperature=0, grammar='root ::= "yes"')
    chat(conversation, "one", "/continue")
    assert contents(conversation) == ["one", "yes"]
    told = capfd.readouterr().err
    assert "came to its end" in told
    assert "cut" not in told


def test_the_next_question_evaluates_only_itself(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer's own tokens are kept: its text, tokenized anew, would be evaluated again."""
    evaluated: list[int] = []
    original = Context.evaluate

    def spy(self: Context, ids: Any, *rest: Any) -> None:
        evaluated.append(len(ids))
        original(self, ids, *rest)

    chat(conversation, "a question of some length, to be kept")
    answer = conversation.last
    assert answer is not None
    monkeypatch.setattr(Context, "evaluate", spy)
    chat(conversation, "b")
    assert conversation.last is not None
    new = conversation.last.completion.prompt_tokens - len(answer.ids)
    assert evaluated[0] <= new + 1  # the answer's last token was never evaluated


def test_system_and_clear(conversation: Conversation, capfd: pytest.CaptureFixture[str]) -> None:
    chat(conversation, "/system Be kind", "one", "/system", "/clear")
    assert conversation.messages == [{"role": "system", "content": "Be kind"}]
    assert "Be kind" in capfd.readouterr().err
    chat(conversation, '/set system "Be brief"')
    assert conversation.system == "Be brief"
    chat(conversation, '/system ""')
    assert conversation.messages == []


def test_a_saved_conversation_is_loaded_and_goes_on(
    conversation: Conversation, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talk.json"
    chat(conversation, "/system Sé breve", "hola", f"/save {path}", "more", "/clear", "/system other", f"/load {path}")
    saved = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert conversation.messages == saved
    assert [message["content"] for message in saved][:2] == ["Sé breve", "hola"]
    chat(conversation, "next", f"/save {path}")  # a conversation may be replaced
    assert len(json.loads(path.read_text(encoding="utf-8"))["messages"]) == 5
    other = tmp_path / "other.json"
    other.write_text('{"not": "one"}')
    chat(conversation, f"/save {other}")
    assert other.read_text() == '{"not": "one"}'
    assert "it is not replaced" in capfd.readouterr().err
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "nowhere")
    chat(conversation, f"/save {link}")
    assert "it is not replaced" in capfd.readouterr().err
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "expected JSON"),
        ("[]", "a list `messages`"),
        ('{"messages": [3]}', "messages[0]: expected an object"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "messages[0].role"),
        ('{"messages": [{"role": "user", "content": 3}]}', "messages[0].content"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "has no answer"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "take turns"),
        ("[" * 100_000, "expected JSON"),
    ],
    ids=lambda text: text[:30],
)
def test_what_is_no_transcript_changes_nothing(
    conversation: Conversation, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    (tmp_path / "x.json").write_text(text)
    chat(conversation, "one")
    before = list(conversation.messages)
    chat(conversation, f"/load {tmp_path / 'x.json'}")
    assert conversation.messages == before
    assert reason in capfd.readouterr().err


def test_half_a_character_in_a_transcript_does_no_harm(conversation: Conversation, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(
        r'{"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "\ud83d\ude00"}]}'
    )
    chat(conversation, f"/load {tmp_path / 'x.json'}", "next")
    assert contents(conversation)[:2] == ["\ufffd", "😀"]
    assert len(conversation.turns) == 4


def test_info_and_verbose_tell_speed_and_context(conversation: Conversation, capfd: pytest.CaptureFixture[str]) -> None:
    chat(conversation, "one", "/info", verbose=True)
    told = capfd.readouterr().err
    assert "6 tokens, " in told
    assert f"{conversation.used} of 256 tokens of context" in told
    assert "temperature" in told
    chat(conversation, "/set quiet", "two")
    assert "tokens/s" not in capfd.readouterr().err
    chat(conversation, "/help")
    told = capfd.readouterr().err
    assert all(name in told for name in COMMANDS)


def test_thinking_is_folded_kept_apart_and_shown_on_request(
    conversation: Conversation, capfd: pytest.CaptureFixture[str]
) -> None:
    conversation.sampling = SamplingOptions(temperature=0, grammar='root ::= "<think>hmm</think>\\n\\nyes"')
    conversation.max_tokens = 60
    chat(conversation, "one")
    shown = capfd.readouterr()
    assert shown.out == "yes\n"
    assert "(thinking …)" in shown.err
    assert "hmm" not in shown.err
    assert conversation.turns[-1] == {"role": "assistant", "content": "yes", "reasoning_content": "hmm"}
    chat(conversation, "/think")
    assert capfd.readouterr().out == "hmm\n"
    assert "".join(conversation.answer("two")) == "yes"


@given(st.text())
def test_nothing_that_moves_a_cursor_reaches_the_terminal(text: str) -> None:
    shown = printable(text)
    assert not any((ord(sign) < 32 and sign not in "\t\n") or 127 <= ord(sign) < 160 for sign in shown)
    if not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in text):
        assert shown == text


def test_control_characters_become_pictures() -> None:
    assert printable("a\x1b[2Jb\x9bc\x7f\r\n\td\r") == "a␛[2Jb\ufffdc␡\n\td␍"


def test_the_history_is_the_users_alone_and_survives_damage(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "state" / "chat-history")
    for entry in ("one", "two\nlines", "é\u2028"):
        file.add(entry)
    assert file.read() == ["one", "two\nlines", "é\u2028"]
    path = tmp_path / "state" / "chat-history"
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with path.open("ab") as stream:
        stream.write(b'\xff\xfe\n{"a": 1}\n"three"\n')
    assert file.read() == ["one", "two\nlines", "é\u2028", "three"]
    path.write_text("".join(f'"{number}"\n' for number in range(3000)))
    assert file.read()[-1] == "2999"
    assert len(file.read()) == 1000
    assert path.read_text().count("\n") == 1000
    blocked = tmp_path / "a file"
    blocked.write_text("")
    HistoryFile(blocked / "chat-history").add("x")  # nobody is bothered
    assert HistoryFile(blocked / "chat-history").read() == []


def typed(tmp_path: Path, *keys: str, prefill: str = "") -> list[Entry | None]:
    """What the line editor makes of keys: as many entries as there are texts."""
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from edgepack.cli.chat.line_editor import LineEditor

    with create_pipe_input() as source:
        editor = LineEditor(COMMANDS, HistoryFile(tmp_path / "history"), source, DummyOutput())
        entries = []
        for text in keys:
            source.send_text(text)
            entries.append(editor.read(prefill))
        return entries


PASTED = "\x1b[200~one\r\n/bye\r\nthree\x1b[201~"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("hello\r", Entry("hello")),
        ("helo\x1b[Dl\r", Entry("hello")),  # left
        ("old\x15new\r", Entry("new")),  # Ctrl-U
        (f"{PASTED}\r", Entry("one\n/bye\nthree", literal=True)),
        ("one\x1b\rtwo\r", Entry("one\ntwo", literal=True)),  # Alt+Enter
        ('"""one\r/bye\rtwo"""\r', Entry("one\n/bye\ntwo", literal=True)),
        ("\x04", None),
    ],
    ids=["plain", "left", "ctrl-u", "paste", "alt-enter", "quotes", "ctrl-d"],
)
def test_lines_are_edited_and_pasted_lines_are_one_message(tmp_path: Path, keys: str, expected: Entry | None) -> None:
    assert typed(tmp_path, keys) == [expected]


def test_earlier_questions_come_back(tmp_path: Path) -> None:
    assert typed(tmp_path, "first\r", "second\r", "\x1b[A\x1b[A\r") == [Entry("first"), Entry("second"), Entry("first")]
    assert typed(tmp_path, "\x1b[A\x1b[A\r") == [Entry("second")]  # in the next chat, too
    assert typed(tmp_path, "!\r", prefill="edit me") == [Entry("edit me!")]


def test_ctrl_c_at_the_prompt_is_no_entry(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        typed(tmp_path, "half\x03")


class Terminal:
    """A chat in a pseudo terminal."""

    def __init__(self, path: Path, *arguments: str, state: Path) -> None:
        import pty

        self._parent, child = pty.openpty()
        environment = {
            **os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "EDGEPACK_STATE": str(state), "LC_ALL": "C",
            "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgepack", "run", str(path), "--threads", "1", *arguments],
            stdin=child, stdout=child, stderr=child, start_new_session=True, env=environment,
        )  # fmt: skip
        os.close(child)
        self.seen = b""

    def until(self, text: str) -> str:
        """Read until a text comes; gives back what came with it."""
        while text.encode() not in self.seen:
            ready, _, _ = select.select([self._parent], [], [], 60)
            assert ready, self.seen[-800:]
            try:
                self.seen += os.read(self._parent, 4096)
            except OSError:
                raise AssertionError(f"it has ended: {self.seen[-3000:].decode()}") from None
        before, _, self.seen = self.seen.partition(text.encode())
        return before.decode()

    def type(self, keys: str) -> None:
        os.write(self._parent, keys.encode())

    def answer_to(self, keys: str) -> None:
        """Type at the prompt, which asks the terminal to mark what is pasted."""
        self.until("[?2004h")
        self.type(keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._parent)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_and_input_are_utf8_whatever_the_console_is_set_to(
    model_path: Path, tmp_path: Path, encoding: str
) -> None:
    grammar = tmp_path / "arrow.gbnf"
    grammar.write_text('root ::= "→"', encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "edgepack", "run", str(model_path), "--threads", "1", "--grammar", f"@{grammar}"],
        input=f"häßlich\n\xff/save {tmp_path / 'talk.json'}\n/save {tmp_path / 'talk.json'}\n".encode().replace(b"\xc3\xbf", b"\xff"),
        env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == "→\n→\n"
    messages = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
    assert messages[0]["content"] == "häßlich"
    assert messages[2]["content"].startswith("\ufffd/save")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_chat_at_a_terminal(model_path: Path, tmp_path: Path) -> None:
    terminal = Terminal(
        model_path, "--temperature", "0", "--max-tokens", "3", "--verbose", "--grammar", 'root ::= "\\u00e9\\x1b" [a-z]+', state=tmp_path
    )  # fmt: skip
    try:
        terminal.until("/help lists the commands")
        terminal.answer_to(f"{PASTED}\r")
        answer = terminal.until("cut: the answer reached its 3 tokens")
        assert "\x1b[2J" not in answer
        terminal.until("tokens of context)")
        terminal.answer_to("/cont\t")
        terminal.until("inue")
        terminal.type("\r")
        terminal.until("tokens of context)")
        terminal.answer_to("/edit\r")
        terminal.until("three")  # the last question, to be edited
        terminal.type("!\r")
        terminal.until("tokens of context)")
        terminal.answer_to(f"/save {tmp_path / 'kept.json'}\r")
        terminal.until("(written to")
        terminal.answer_to("\x04")
        assert terminal.process.wait(timeout=60) == 0
    finally:
        terminal.close()
    messages = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "one\n/bye\nthree!"
    assert messages[1]["content"].startswith("é\x1b")
    assert HistoryFile(tmp_path / "chat-history").read()[0] == "one\n/bye\nthree"
