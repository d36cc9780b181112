"""A conversation: turns, a full context, Ctrl-C, what is kept on disk; nothing reaches for the network."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import Shape, string, write_random

from edgepack.cli import execute as run
from edgepack.edge.chat.completion import complete, without_middle
from edgepack.edge.chat.conversation import Conversation
from edgepack.edge.chat.prompt_cache import load_prompt_state, save_prompt_state
from edgepack.edge.chat.stop_strings import until_stop
from edgepack.edge.chat.template import JinjaTemplate
from edgepack.edge.llama.context import Context
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GREEDY = SamplingOptions(temperature=0)
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ARGUMENTS = ["--threads", "1", "--max-tokens", "5", "--temperature", "0"]


@pytest.fixture(scope="module")
def model(tiny_chat: Path) -> Iterator[LoadedModel]:
    with LoadedModel(tiny_chat, RuntimeOptions(n_ctx=256, threads=1, max_outputs=1)) as loaded:
        yield loaded


@pytest.fixture
def conversation(model: LoadedModel) -> Iterator[Conversation]:
    template = JinjaTemplate(TEMPLATE)
    model.clear()
    yield Conversation(model, template, GREEDY, max_tokens=6)
    template.close()


def test_each_question_and_answer_become_turns_that_the_next_answer_sees(conversation: Conversation) -> None:
    first = "".join(conversation.answer("one"))
    second = "".join(conversation.answer("two"))
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2
    assert [turn["content"] for turn in conversation.turns] == ["one", first, "two", second]
    conversation.reset()
    alone = "".join(conversation.answer("two"))
    assert conversation.turns[0]["content"] == "two"
    assert isinstance(alone, str)


def test_a_second_turn_evaluates_only_what_is_new(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    list(conversation.answer("a question of some length, to be kept"))
    evaluated: list[int] = []
    original = Context.evaluate

    def spy(self: Context, ids: object, **options: object) -> None:
        evaluated.append(len(ids))  # type: ignore[arg-type]
        original(self, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Context, "evaluate", spy)
    list(conversation.answer("b"))
    assert evaluated[0] < len(conversation.tokens(conversation.turns[:2]))


def test_a_conversation_beyond_the_context_names_both_numbers_and_keeps_the_rest(conversation: Conversation) -> None:
    list(conversation.answer("short"))
    with pytest.raises(UsageError, match=r"has \d{3} tokens, the context holds 256.*--ctx-shift"):
        list(conversation.answer("é" * 300))
    assert len(conversation.turns) == 2


def test_with_context_shift_the_oldest_turns_are_forgotten(conversation: Conversation) -> None:
    conversation.context_shift = True
    conversation.system = "kept"
    for number in range(8):
        list(conversation.answer(f"question {number} " + "words " * 10))
    assert conversation.forgotten > 0
    assert conversation.messages[0] == {"role": "system", "content": "kept"}
    assert "question 7" in conversation.turns[-2]["content"]
    assert len(conversation.tokens(conversation.messages)) < 256


def test_a_stopped_answer_is_kept_as_far_as_it_came(conversation: Conversation) -> None:
    answer = conversation.answer("go on")
    first = next(answer)
    conversation.model.abort.set()
    rest = list(answer)
    assert rest == []
    assert conversation.turns[-1] == {"role": "assistant", "content": first}
    assert "".join(conversation.answer("again"))  # the flag is cleared by the next answer


def test_a_transcript_is_json_with_every_message(conversation: Conversation) -> None:
    conversation.system = "Sé breve"
    list(conversation.answer("hola"))
    assert json.loads(conversation.transcript())["messages"] == conversation.messages


def test_a_prompt_is_not_given_two_beginnings(conversation: Conversation) -> None:
    bos = conversation.model.vocabulary.bos
    plain = conversation.tokens([{"role": "user", "content": "x"}])
    conversation.template = JinjaTemplate("{{ bos_token }}" + TEMPLATE)
    conversation.template._special = type(conversation.template._special)("<s>", "</s>")
    explicit = conversation.tokens([{"role": "user", "content": "x"}])
    conversation.template.close()
    assert plain.count(bos) == explicit.count(bos) == 1


def test_context_shift_goes_on_beyond_the_context(model: LoadedModel) -> None:
    prompt = model.tokenize("x" * 100)
    sampling = SamplingOptions(temperature=0, grammar="root ::= [a-z] root")
    result = complete(model, prompt, sampling, 300, lambda _text: None, context_shift=True)
    assert result.tokens == 300
    assert model.n_evaluated <= model.n_ctx
    assert complete(model, prompt, sampling, 300, lambda _text: None).tokens == 256 - len(prompt) + 1


def test_a_prompt_too_long_loses_its_middle_only_when_asked(model: LoadedModel) -> None:
    ids = list(range(3, 3 + 400))
    cut = without_middle(ids, 256)
    assert (cut[0], cut[-1], len(cut)) == (3, 402, 128)
    assert without_middle(ids[:100], 256) == ids[:100]


def test_a_prompt_state_is_restored_for_the_same_model_only(model: LoadedModel, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "state"
    tokens = model.tokenize("a fixed beginning")
    model.clear()
    save_prompt_state(model, tokens, path)
    expected = [t.id for t in model.generate([*tokens, 9], GREEDY, 5)]
    model.clear()
    assert load_prompt_state(model, path) == len(tokens)
    assert model.evaluate([*tokens, 9]) == 1
    assert [t.id for t in model.generate([*tokens, 9], GREEDY, 5)] == expected
    with LoadedModel(tiny, RuntimeOptions(n_ctx=256, threads=1, max_outputs=1)) as other:
        assert load_prompt_state(other, path) == 0
    raw = bytearray(path.read_bytes())
    for position in (0, 9, 60, len(raw) - 1):
        damaged = raw.copy()
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert load_prompt_state(model, path) == 0
    path.write_bytes(raw[:30])
    assert load_prompt_state(model, path) == 0
    assert load_prompt_state(model, tmp_path / "absent") == 0


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.randoms())
def test_stop_texts_cut_as_if_the_whole_text_were_known(text: str, stops: list[str], random: object) -> None:
    pieces, rest = [], text
    while rest:
        length = random.randint(0, 5)  # type: ignore[attr-defined]
        pieces.append(rest[:length])
        rest = rest[length:]
    shown = list(until_stop(pieces, stops))
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert "".join(shown) == (text[: min(places)] if places else text)


def chat_process(path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgepack", "run", str(path), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_chat_over_a_pipe_obeys_its_commands(tiny_chat: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = (
        f"hello\n/save {saved}\n/reset\n/save {tmp_path / 'empty.json'}\n/help\n/save {tmp_path}/no/x\n/bye\nnot read\n"
    )
    out, err = chat_process(tiny_chat, *ARGUMENTS, "--system", "Be brief").communicate(lines, timeout=120)
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert out == messages[2]["content"] + "\n"
    assert [m["role"] for m in json.loads((tmp_path / "empty.json").read_text())["messages"]] == ["system"]
    assert "/reset" in err
    assert "folder" in err
    assert "not read" not in err


def test_a_question_that_fails_does_not_end_the_chat(tiny_chat: Path) -> None:
    lines = "é" * 600 + "\nhello\n"
    process = chat_process(tiny_chat, *ARGUMENTS)
    out, err = process.communicate(lines, timeout=120)
    assert process.returncode == 0
    assert "the context holds 512" in err
    assert out.strip("\n") or out.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_stops_the_answer_and_not_the_program(models: Path, tmp_path: Path) -> None:
    import pty

    shape = Shape(context=65536, extra={"tokenizer.chat_template": string(TEMPLATE)})
    path = write_random(models / "long-context.gguf", shape)
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgepack", "run", str(path), "--ctx", "60000", "--threads", "1", "--temperature", "2",
         "--ctx-shift", "--grammar", "root ::= [a-z] root"],  # it never ends of itself
        stdin=child, stdout=child, stderr=child, start_new_session=True,
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "EDGEPACK_STATE": str(tmp_path)},
    )  # fmt: skip
    os.close(child)
    seen = b""

    def read_more() -> None:
        nonlocal seen
        ready, _, _ = select.select([parent], [], [], 60)
        assert ready, seen[-500:]
        seen += os.read(parent, 4096)

    def read_until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            read_more()
        seen = seen.split(text, 1)[1]

    try:
        read_until(b"[?2004h")  # the prompt asks the terminal to mark what is pasted
        os.write(parent, b"tell me everything\r")
        read_until(b"[?2004l")  # and stops it when the question is sent
        while len(seen) < 40:
            read_more()
        process.send_signal(signal.SIGINT)
        read_until(b"(stopped;")
        read_until(b"[?2004h")
        os.write(parent, f"/save {tmp_path / 'kept.json'}\r".encode())
        read_until(b"written to")
        os.write(parent, b"/bye\r")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    assert json.loads((tmp_path / "kept.json").read_text())["messages"][1]["content"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_interrupts_the_evaluation_of_a_prompt(models: Path) -> None:
    """One llama_decode over thousands of tokens takes seconds; the signal must not wait for its end."""
    shape = Shape(layers=8, width=512, heads=8, head_width=64, feed_forward=2048, context=32768)
    path = write_random(models / "slow.gguf", shape)
    script = (
        "import os, signal, sys, threading, time; from pathlib import Path\n"
        "from edgepack.edge.llama.runtime import LoadedModel, RuntimeOptions, StoppedError\n"
        "from edgepack.edge.llama.interrupt import ctrl_c_sets\n"
        "with LoadedModel(Path(sys.argv[1]), RuntimeOptions(n_ctx=16384, n_batch=8192, threads=1)) as model:\n"
        "    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    with ctrl_c_sets(model.abort):\n"
        "        try: model.evaluate([5] * 8000)\n"
        "        except StoppedError: print('stopped', model.n_evaluated)\n"
        "    model.abort.clear()\n"
        "    print(model.evaluate([5] * 10))\n"
    )
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["stopped", "0", "10"], result.stderr


def test_a_chat_without_a_template_says_so_before_loading(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tiny)]) == 10
    assert "the model has no chat template; choose one with --template NAME" in capfd.readouterr().err


def test_one_question_is_answered_through_the_template(tiny_chat: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", str(tiny_chat), "--prompt", "hi", "--chat", "--json", *ARGUMENTS]) == 0
    chat = json.loads(capfd.readouterr().out)
    assert run(["run", str(tiny_chat), "--raw", "--prompt", "<|user|>hi\n<|assistant|>", "--json", *ARGUMENTS]) == 0
    raw = json.loads(capfd.readouterr().out)
    assert chat["text"] == raw["text"].split("\n<|user|>")[0]
    assert chat["prompt"] == "hi"


def test_the_prompt_cache_is_written_once_and_used(tiny_chat: Path, tmp_path: Path) -> None:
    state = tmp_path / "system.state"
    arguments = ["--prompt", "hi", "--chat", "--system", "You are kind", "--prompt-cache", str(state), *ARGUMENTS]
    outputs = []
    for _ in range(2):
        process = chat_process(tiny_chat, *arguments)
        outputs.append((*process.communicate(timeout=120), process.returncode, state.stat().st_mtime_ns))
    assert [end[2] for end in outputs] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][3] == outputs[1][3]
    assert "is kept in" in outputs[0][1]
    assert "is kept in" not in outputs[1][1]


def test_a_prompt_cache_replaces_nothing_of_another_kind(
    tiny_chat: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "letter.txt"
    other.write_text("Dear Jane")
    arguments = ["--prompt", "hi", "--chat", "--system", "You are kind", *ARGUMENTS]
    for path in (other, tiny_chat):
        before = path.read_bytes()
        assert run(["run", str(tiny_chat), *arguments, "--prompt-cache", str(path)]) == 2
        assert path.read_bytes() == before
        assert len(capfd.readouterr().err.strip().splitlines()) == 1
    state = tmp_path / "damaged.state"
    state.write_bytes(b"EPPROMPT cut off")  # one of ours that cannot be used is written anew
    assert run(["run", str(tiny_chat), *arguments, "--prompt-cache", str(state)]) == 0
    assert state.stat().st_size > 1000


def test_json_schema_binds_an_answer(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    schema = '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}'
    arguments = ["--prompt", "x", "--json-schema", schema, "--json", "--threads", "1", "--max-tokens", "60"]
    assert run(["run", str(tiny), *arguments, "--temperature", "0"]) == 0
    assert set(json.loads(json.loads(capfd.readouterr().out)["text"])) == {"ok"}
    assert run(["run", str(tiny), "--prompt", "x", "--json-schema", "[1"]) == 2


NO_NETWORK = (
    "import sys\n"
    "def refuse(event, arguments):\n"
    "    if event.startswith('socket.') and event not in ('socket.gethostname',): raise RuntimeError('network: ' + event)\n"
    "sys.addaudithook(refuse)\n"
    "from edgepack.cli import execute as run\n"
    "sys.exit(run(sys.argv[1:]))\n"
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "FILE", "--prompt", "hello", *ARGUMENTS],
        ["run", "FILE", "--prompt", "hello", "--chat", *ARGUMENTS],
        ["fit", "FILE", "--device", "cpu"],
        ["cache", "list"],
    ],
    ids=lambda arguments: " ".join(arguments[:3:2]),
)
def test_with_sockets_refused_everything_still_works(
    tiny_chat: Path, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepack.packaging.pack import pack_archive

    archive = pack_archive(tiny_chat, tmp_path / "model.edgepack", threads=1).output
    arguments = [str(archive) if part == "FILE" else part for part in arguments]
    environment = {**os.environ, "EDGEPACK_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "network" not in result.stderr
