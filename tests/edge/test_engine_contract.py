"""One contract, two engines: the same tokens, texts, stops and errors from llama-cpp-python and from xllamacpp."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_models import Shape, write_random

from edgepack import export
from edgepack.edge.chat.completion import complete
from edgepack.edge.chat.conversation import Conversation
from edgepack.edge.chat.template import JinjaTemplate, special_tokens
from edgepack.edge.llama import loads
from edgepack.edge.llama.engine import UNTOLD_TOKEN, OpenModel, StoppedError
from edgepack.edge.llama.engines import choose_engine, installed, open_model
from edgepack.edge.llama.interrupt import AbortFlag
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.errors import DependencyError, ModelRuntimeError, UsageError
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("xllamacpp")
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ENGINES = ("llama-cpp-python", "xllamacpp")
GREEDY = SamplingOptions(temperature=0)
TEXT = "hello world, this is a test of forty or so tokens"


def options(engine: str, **more: object) -> RuntimeOptions:
    return RuntimeOptions(n_ctx=512, threads=1, max_outputs=1, engine=engine, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, books: Path) -> Path:
    """A model whose answers are text: byte pairs, F32, so that both builds agree to the last token."""
    path = tmp_path_factory.mktemp("trained") / "books.gguf"
    export(books, target="gguf-f32", output=path)
    return path


@pytest.fixture(scope="module", params=ENGINES)
def model(request: pytest.FixtureRequest, trained: Path) -> Iterator[OpenModel]:
    with open_model(trained, options(request.param)) as opened:
        yield opened


@pytest.fixture(scope="module")
def both(trained: Path) -> Iterator[list[OpenModel]]:
    opened = [open_model(trained, options(engine)) for engine in ENGINES]
    yield opened
    for each in opened:
        each.close()


def same(both: list[OpenModel], ask: Callable[[OpenModel], object]) -> object:
    first, second = map(ask, both)
    assert first == second
    return first


def test_both_say_the_same_of_themselves(both: list[OpenModel]) -> None:
    same(both, lambda m: (m.n_ctx, m.n_ctx_train, m.n_vocab, m.n_embd, m.threads, m.bos_text))


@pytest.mark.parametrize("text", ["", " ", TEXT, "grüße 🙂 日本", "<s></s>", "a\0b"])
def test_both_read_a_text_as_the_same_tokens(both: list[OpenModel], text: str) -> None:
    for add_special in (True, False):
        for parse_special in (True, False):
            first, second = (m.tokenize(text, add_special=add_special, parse_special=parse_special) for m in both)
            assert first == second
            for special in (True, False):
                spelled = [m.detokenize(first, special=special) for m in both]
                assert spelled[0] == spelled[1]


def test_both_generate_the_same_greedy_tokens(both: list[OpenModel]) -> None:
    ids = both[0].tokenize(TEXT)
    tokens = [[(t.id, t.text) for t in m.generate(ids, GREEDY, 40)] for m in both]
    assert "".join(text for _id, text in tokens[0]) == "".join(text for _id, text in tokens[1])
    assert len(tokens[0]) == len(tokens[1]) == 40
    told = [(a, b) for (a, _), (b, _) in zip(*tokens, strict=True) if b != UNTOLD_TOKEN]
    assert told
    assert all(a == b for a, b in told)


@pytest.mark.parametrize("more", [{"repeat_penalty": 1.5}, {"frequency_penalty": 1.0, "presence_penalty": 0.5}])
def test_both_apply_penalties_alike(both: list[OpenModel], more: dict[str, float]) -> None:
    ids = both[0].tokenize(TEXT)
    chosen = SamplingOptions(temperature=0, **more)  # type: ignore[arg-type]
    same(both, lambda m: "".join(t.text for t in m.generate(ids, chosen, 24)))


def test_a_seed_gives_the_same_answer_again(model: OpenModel) -> None:
    ids, chosen = model.tokenize(TEXT), SamplingOptions(seed=7)
    first, again, other = (
        [t.text for t in model.generate(ids, s, 16)] for s in (chosen, chosen, SamplingOptions(seed=8))
    )
    assert first == again
    assert first != other


def test_both_stop_at_the_same_texts(both: list[OpenModel]) -> None:
    whole = complete(both[0], TEXT, GREEDY, 30).text
    stop = whole[len(whole) // 2 :][:3]
    result = same(both, lambda m: complete(m, TEXT, GREEDY, 30, stops=[stop]).text)
    assert result == whole[: whole.index(stop)]


def test_both_make_the_same_prompt_of_a_conversation(both: list[OpenModel], trained: Path) -> None:
    template = JinjaTemplate(CHATML, special_tokens(read_header(trained)))
    try:
        talks = [Conversation(m, template, GREEDY, "be brief", 12) for m in both]
        assert talks[0].prompt_for("who are you?") == talks[1].prompt_for("who are you?")
        for question in ("who are you?", "and now?"):
            answers = ["".join(talk.answer(question)) for talk in talks]
            assert answers[0] == answers[1]
    finally:
        template.close()


def test_an_answer_follows_a_grammar(model: OpenModel) -> None:
    chosen = SamplingOptions(temperature=0, grammar='root ::= "yes" | "no"')
    assert "".join(t.text for t in model.generate(model.tokenize(TEXT), chosen, 8)) in ("yes", "no")


def test_a_sentencepiece_model_follows_a_schema_too(tiny: Path) -> None:
    for engine in ENGINES:
        with open_model(tiny, options(engine)) as opened:
            chosen = SamplingOptions(temperature=0, json_schema=json.dumps({"enum": ["yes", "no"]}))
            answer = "".join(t.text for t in opened.generate(opened.tokenize(TEXT), chosen, 20))
            assert json.loads(answer) in ("yes", "no")


def test_an_answer_follows_a_schema(model: OpenModel) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    chosen = SamplingOptions(temperature=0, json_schema=json.dumps(schema))
    answer = "".join(t.text for t in model.generate(model.tokenize(TEXT), chosen, 60))
    assert json.loads(answer)["a"] in (1, 2)


@pytest.mark.parametrize(
    "grammar", ["root ::= ((", 'rot ::= "a"', 'root ::= root "a"', "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000]
)
def test_a_grammar_that_cannot_be_followed_is_an_error_with_its_reason(
    model: OpenModel, grammar: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="grammar: "):
        next(model.generate(model.tokenize(TEXT), SamplingOptions(grammar=grammar), 4), None)
    assert capfd.readouterr() == ("", "")  # nothing of llama.cpp's own


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "string", "minLength": 10**9}},
        {"$ref": "#/definitions/nowhere"},
    ],
)
def test_a_schema_that_cannot_be_followed_is_an_error_with_its_reason(
    model: OpenModel, schema: object, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="JSON schema: "):
        next(model.generate(model.tokenize(TEXT), SamplingOptions(json_schema=json.dumps(schema)), 4), None)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("schema", "beginning"),
    [
        *(({"type": "string", "maxLength": length}, '"') for length in (1000, 2000, 65_536)),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 100_000}, "["),
        ({"type": "array", "items": {"type": "string", "maxLength": 5000}, "minItems": 5000}, "["),
        ({"type": "string", "pattern": "^a+$"}, '"a'),
    ],
)
def test_what_is_long_or_rare_is_followed_or_refused(model: OpenModel, schema: object, beginning: str) -> None:
    chosen = SamplingOptions(temperature=0, json_schema=json.dumps(schema))
    try:
        answer = "".join(t.text for t in model.generate(model.tokenize(TEXT), chosen, 6))
    except UsageError as error:
        assert "JSON schema: " in str(error)  # noqa: PT017 - one of two outcomes
    else:
        assert answer.startswith(beginning)


@pytest.mark.parametrize("ids", [[], [-1], [10**6], [1] * 600])
def test_both_refuse_the_same_prompts_in_the_same_words(both: list[OpenModel], ids: list[int]) -> None:
    def refusal(model: OpenModel) -> str:
        with pytest.raises(UsageError) as caught:
            next(model.generate(ids, GREEDY, 4), None)
        return str(caught.value)

    same(both, refusal)


def test_both_refuse_to_spell_ids_outside_the_vocabulary(both: list[OpenModel]) -> None:
    for ids in ([9_999_999], [-5]):

        def refusal(model: OpenModel, ids: list[int] = ids) -> str:
            with pytest.raises(UsageError) as caught:
                model.detokenize(ids)
            return str(caught.value)

        same(both, refusal)


def test_a_context_is_filled_and_no_more(model: OpenModel) -> None:
    ids = model.tokenize(TEXT)
    count = sum(1 for _ in model.generate(ids, GREEDY))
    assert count in (model.n_ctx - len(ids), model.n_ctx - len(ids) + 1) or count < model.n_ctx - len(ids)


def test_generation_goes_on_beyond_the_context_where_it_may_forget(model: OpenModel) -> None:
    ids = model.tokenize(TEXT)
    grammar = SamplingOptions(temperature=0, grammar='root ::= [a-z ]+ "0123456789"')
    tokens = sum(1 for _ in model.generate(ids, grammar, model.n_ctx + 20, context_shift=True))
    assert tokens == model.n_ctx + 20


def test_a_flag_ends_an_answer_and_the_next_is_whole(model: OpenModel) -> None:
    ids = model.tokenize(TEXT)
    whole = [t.text for t in model.generate(ids, GREEDY, 20)]
    cut = []
    for token in model.generate(ids, GREEDY, 400):
        cut.append(token.text)
        model.abort.set()
    assert len(cut) <= 2
    assert [t.text for t in model.generate(ids, GREEDY, 20)] == whole


def test_the_flag_that_is_given_is_the_one_that_is_read(trained: Path) -> None:
    for engine in ENGINES:
        flag = AbortFlag()
        with open_model(trained, options(engine), flag) as opened:
            assert opened.abort is flag


def test_an_answer_may_be_closed_early(model: OpenModel) -> None:
    answer = model.generate(model.tokenize(TEXT), GREEDY, 400)
    next(answer)
    answer.close()
    assert len(list(model.generate(model.tokenize(TEXT), GREEDY, 5))) == 5


def test_a_flag_set_while_loading_ends_it(tiny_chat: Path) -> None:
    for engine in ENGINES:
        abort = AbortFlag()
        abort.set()
        try:
            open_model(tiny_chat, options(engine), abort).close()
        except StoppedError:
            continue  # a model this small may be ready before anybody looks


def test_python_keeps_its_signal_handlers(tiny_chat: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    try:
        with open_model(tiny_chat, options("xllamacpp")) as opened:
            signal.raise_signal(signal.SIGINT)
            assert len(list(opened.generate(opened.tokenize(TEXT), GREEDY, 3))) == 3
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_both_embed_alike(tiny: Path) -> None:
    found = []
    for engine in ENGINES:
        with open_model(tiny, options(engine, embeddings=True, n_batch=64, n_ubatch=64)) as opened:
            found.append(opened.embed(opened.tokenize(TEXT)))
            with pytest.raises(UsageError, match="text has 65 tokens, embeddings take at most n_ubatch = 64"):
                opened.embed([1] * 65)
    np.testing.assert_allclose(found[0], found[1], atol=1e-2 * float(np.abs(found[0]).max()))


def test_a_file_that_llama_cpp_refuses_is_an_error_with_its_reason(models: Path) -> None:
    path = write_random(models / "unknown.gguf", Shape(architecture="nonsense"))
    for engine in ENGINES:
        with pytest.raises(ModelRuntimeError, match="unknown model architecture: 'nonsense'"):
            open_model(path, options(engine))


def test_measured_times_are_positive(model: OpenModel) -> None:
    ids = model.tokenize(TEXT)
    assert model.prompt_seconds(ids) > 0
    assert model.generation_seconds(ids) > 0


def test_an_unknown_engine_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="expected one of auto, llama-cpp-python, xllamacpp"):
        choose_engine("vllm")  # type: ignore[arg-type]


def test_an_engine_that_is_absent_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.edge.llama.engines.installed", lambda _name: False)
    with pytest.raises(DependencyError, match="pip install xllamacpp"):
        choose_engine()


def test_auto_takes_llama_cpp_python_where_it_is_and_else_xllamacpp(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("llama-cpp-python")
    assert choose_engine().name == "llama-cpp-python"
    monkeypatch.setattr("edgepack.edge.llama.engines.installed", lambda name: name == "xllamacpp")
    assert choose_engine().name == "xllamacpp"


def test_facts_name_build_devices_and_limits() -> None:
    for engine in ENGINES:
        facts = choose_engine(engine).facts()  # type: ignore[arg-type]
        assert facts.name == engine
        assert "llama.cpp" in facts.build
        assert "CPU" in facts.devices
        assert facts.limits


OPENED_AND_CLOSED = """
import sys
from pathlib import Path
from edgepack.edge.llama.engines import open_model
from edgepack.edge.llama.options import RuntimeOptions
for _ in range(8):
    open_model(Path(sys.argv[1]), RuntimeOptions(n_ctx=256, threads=1, engine=sys.argv[2])).close()
"""
TRIED = """
import runpy, sys
sys.modules['llama_cpp'] = None  # not installed
runpy.run_path(sys.argv[1], run_name='__main__')
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_is_closed_as_soon_as_it_is_open_ends(engine: str, tiny: Path) -> None:
    subprocess.run([sys.executable, "-c", OPENED_AND_CLOSED, str(tiny), engine], check=True, timeout=120)


def test_the_trial_of_a_file_ends_where_xllamacpp_is_the_only_engine(tiny: Path) -> None:
    assert loads.__file__ is not None
    worker = Path(loads.__file__).with_name("loads_worker.py")
    code = TRIED.replace("sys.argv[1]", repr(str(worker)))
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
