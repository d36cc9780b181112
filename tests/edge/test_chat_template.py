"""Templates render as Hugging Face renders them; hostile ones end in an error, never in a hung or harmed machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from edgepack.edge.chat.template import (
    JinjaTemplate,
    NamedTemplate,
    SpecialTokens,
    choose_template,
    named_templates,
    stop_texts,
)
from edgepack.errors import TemplateError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 < 3 & 'quoted'?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?\n"},
]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
    "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}\n    {% if loop.first %}\n[{{ message.content | tojson }}]{% continue %}{% endif %}\n"
    "{% endfor %}"
)
HOSTILE = {
    "an endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}{% endfor %}{% endfor %}",
    "a doubling text": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a huge repetition": "{{ 'a' * 10 ** 11 }}",
    "a huge number": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "a huge format": "{{ '%099999999999d' | format(1) }}",
    "endless output": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "a file": "{% include '/etc/passwd' %}",
    "a file by its name": "{{ open('/etc/passwd').read() }}",
    "an import": "{% import 'os' as os %}{{ os.system('true') }}",
    "the classes of Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__['sys'] }}",
    "cycler's globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "a changed message": "{{ messages.append(1) }}",
    "a syntax error": "{% for message in messages %}{{ message.content }",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


@pytest.fixture(scope="module")
def shared() -> Iterator[JinjaTemplate]:
    template = JinjaTemplate("")
    yield template
    template.close()


@pytest.mark.parametrize("source", [CHATML, LLAMA3], ids=["chatml", "llama3"])
@pytest.mark.parametrize("add", [True, False])
def test_rendering_equals_hugging_faces(source: str, add: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = JinjaTemplate(source, SpecialTokens("<s>", "</s>"))
    ours = template.render(MESSAGES, add_generation_prompt=add)
    template.close()
    (theirs,), _ = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=add,
                                         bos_token="<s>", eos_token="</s>")  # fmt: skip
    assert ours == theirs


def test_rendering_equals_llama_cpps_own_for_the_same_template() -> None:
    template = JinjaTemplate(CHATML)
    assert template.render(MESSAGES) == NamedTemplate("chatml").render(MESSAGES)
    template.close()


def test_a_templates_own_refusal_is_the_error() -> None:
    template = JinjaTemplate(REFUSES_SYSTEM)
    with pytest.raises(TemplateError, match="System role not supported"):
        template.render(MESSAGES)
    assert template.render([{"role": "user", "content": "<é>"}]).strip() == '["<é>"]'
    template.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_and_the_next_one_works(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.edge.chat.template._RENDER_SECONDS", 2.0)
    template = JinjaTemplate(HOSTILE[name])
    started = time.monotonic()
    with pytest.raises(TemplateError):
        template.render(MESSAGES)
    assert time.monotonic() - started < 120  # killed, not waited for; generous, as machines are busy
    template._source = "{{ messages[1].role }}"
    assert template.render(MESSAGES) == "user"
    template.close()


def test_no_template_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(TemplateError, match=r"--template NAME: .*chatml.*llama3"):
        choose_template(None, None, SpecialTokens(), "model.gguf")


def test_a_broken_template_is_an_error_with_its_line_and_the_way_out() -> None:
    with pytest.raises(TemplateError, match=r"line 2: .+--template NAME"):
        choose_template(None, "{{ messages }}\n{% for %}", SpecialTokens(), "model.gguf")


def test_a_template_can_be_chosen_by_name_or_file(tmp_path: Path) -> None:
    assert "<|im_start|>" in choose_template("chatml", None, SpecialTokens(), "m").render(MESSAGES)
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[0].content }}", encoding="utf-8")
    template = choose_template(str(path), "{% broken", SpecialTokens(), "m")
    assert template.render(MESSAGES) == "Be brief."
    template.close()
    with pytest.raises(UsageError, match="chatml"):
        choose_template("chatmll", None, SpecialTokens(), "m")


def test_every_named_template_renders_a_question() -> None:
    texts = [NamedTemplate(name).render([{"role": "user", "content": "Why?"}]) for name in named_templates()]
    assert all("Why?" in text for text in texts)


@pytest.mark.parametrize(
    ("source", "stops"),
    [
        (CHATML, ["<|im_end|>"]),
        ("{% for m in messages %}\n{{ m.role }}: {{ m.content }}\n{% endfor %}", ["\nuser:"]),
        ("{% for m in messages %}{{ m.content }} {% endfor %}", []),
    ],
)
def test_what_a_template_puts_behind_an_answer_ends_it(source: str, stops: list[str]) -> None:
    template = JinjaTemplate(source)
    assert stop_texts(template) == stops
    template.close()
