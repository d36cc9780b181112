"""The runtime: logits, tokens and text are llama.cpp's own; failures are errors with a reason."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_models import Shape, write_random

from edgepack.edge.llama.engine import GeneratedToken, common_prefix
from edgepack.edge.llama.options import KV_TYPES, RuntimeOptions, SamplingOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.errors import ModelRuntimeError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

ONE_THREAD = RuntimeOptions(threads=1, n_batch=16, n_ubatch=16)
GREEDY = SamplingOptions(temperature=0)
TEXT = "hello world, this is a test of forty or so tokens"


@pytest.fixture(scope="module")
def model(tiny: Path) -> LoadedModel:
    with LoadedModel(tiny, ONE_THREAD) as loaded:
        yield loaded


def test_logits_equal_those_of_llama_cpp_python_called_bare(model: LoadedModel, tiny: Path) -> None:
    from llama_cpp import Llama

    ids = model.tokenize(TEXT)
    bare = Llama(str(tiny), n_ctx=512, n_batch=16, n_ubatch=16, n_threads=1, logits_all=True, verbose=True)
    assert bare.tokenize(TEXT.encode()) == ids
    bare.eval(ids)
    ours = model.logits(ids)
    assert ours.shape == (len(ids), model.n_vocab)
    assert ours.dtype == np.float32
    # Flash attention (our default) and the plain attention of the bare class round differently.
    np.testing.assert_allclose(ours, bare.scores[: len(ids)], atol=2e-2)
    bare.close()


def test_logits_do_not_depend_on_the_chunks_they_are_evaluated_in(model: LoadedModel, tiny: Path) -> None:
    ids = model.tokenize(TEXT)
    with LoadedModel(tiny, RuntimeOptions(threads=1, n_batch=512)) as whole:
        np.testing.assert_allclose(model.logits(ids), whole.logits(ids), atol=2e-2)


def test_logits_from_a_position_on_are_the_last_rows_of_all(model: LoadedModel) -> None:
    ids = model.tokenize(TEXT)
    whole = model.logits(ids)
    for first in (0, 1, 17, len(ids) - 1):
        # Other shapes of the last product are summed in another order.
        np.testing.assert_allclose(model.logits(ids, first), whole[first:], atol=1e-4)


def test_logits_do_not_depend_on_what_was_evaluated_before(model: LoadedModel) -> None:
    ids = model.tokenize(TEXT)
    first = model.logits(ids)
    model.logits(ids[::-1])
    np.testing.assert_array_equal(model.logits(ids), first)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_every_exact_kv_type_gives_nearly_the_same_logits(tiny: Path, name: str, model: LoadedModel) -> None:
    ids = model.tokenize(TEXT)
    options = RuntimeOptions(threads=1, kv_type_k=name, kv_type_v=name)
    with LoadedModel(tiny, options) as other:
        np.testing.assert_allclose(other.logits(ids), model.logits(ids), atol=0.1)


@pytest.mark.parametrize("name", [name for name, kind in KV_TYPES.items() if kind.is_quantized])
def test_every_quantised_kv_type_opens_and_evaluates(models: Path, name: str) -> None:
    path = write_random(models / "wide-heads.gguf", Shape(heads=2, kv_heads=1, head_width=32))
    options = RuntimeOptions(threads=1, kv_type_k=name, kv_type_v=name, flash_attention="on")
    with LoadedModel(path, options) as other:
        assert np.isfinite(other.logits(other.tokenize(TEXT))).all()


def test_greedy_generation_takes_the_argmax_of_the_logits(model: LoadedModel) -> None:
    prompt = model.tokenize(TEXT)
    tokens = [token.id for token in model.generate(prompt, GREEDY, 8)]
    logits = model.logits(prompt + tokens)
    assert tokens == logits[len(prompt) - 1 : -1].argmax(axis=1).tolist()


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(model: LoadedModel) -> None:
    prompt = model.tokenize(TEXT)

    def draw(seed: int) -> list[GeneratedToken]:
        return list(model.generate(prompt, SamplingOptions(temperature=2.0, seed=seed), 12))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_common_beginning_is_not_evaluated_twice(model: LoadedModel) -> None:
    ids = model.tokenize(TEXT)
    model.clear()
    assert model.evaluate(ids) == len(ids)
    assert model.evaluate([*ids, 5, 6]) == 2
    assert model.evaluate(ids[:10]) == 1
    assert model.n_evaluated == 10


def test_generation_after_a_kept_beginning_equals_generation_from_scratch(model: LoadedModel) -> None:
    ids = model.tokenize(TEXT)
    model.clear()
    scratch = [token.id for token in model.generate(ids, GREEDY, 6)]
    model.evaluate([*ids[:20], 7, 8, 9])
    assert [token.id for token in model.generate(ids, GREEDY, 6)] == scratch


def test_a_kept_beginning_is_right_where_attention_slides(models: Path) -> None:
    shape = Shape("gemma3", layers=6, heads=2, kv_heads=1, head_width=32, context=4096, window=32)
    path = write_random(models / "window.gguf", shape)
    with LoadedModel(path, RuntimeOptions(n_ctx=2048, threads=1, n_batch=64, n_ubatch=64)) as model:
        ids = [3 + (i * 7) % 200 for i in range(900)]
        model.evaluate(ids)
        assert model.evaluate(ids[:300]) == 300  # the window before token 300 is gone: everything anew
        kept = [token.id for token in model.generate(ids[:300], GREEDY, 5)]
        model.clear()
        assert [token.id for token in model.generate(ids[:300], GREEDY, 5)] == kept
        assert model.evaluate([*ids[:300], 9]) <= 6  # what is near enough is kept


@pytest.mark.parametrize("text", ["héllo", "日本語 text", "👩‍👩‍👧", "x  two  spaces\n\n\ttab", "a\x00b"])
def test_text_survives_tokenizing_and_detokenizing(model: LoadedModel, text: str) -> None:
    ids = model.tokenize(text, add_special=False)
    assert model.detokenize(ids).removeprefix(" ") == text.removeprefix(" ")


def test_generation_stops_where_the_context_ends(tiny: Path) -> None:
    with LoadedModel(tiny, RuntimeOptions(n_ctx=256, threads=1)) as small:
        prompt = [5] * 250
        tokens = list(small.generate(prompt, SamplingOptions(temperature=0, repeat_penalty=1.0)))
        assert len(tokens) <= 7
        assert small.n_evaluated <= small.n_ctx


def test_a_prompt_beyond_the_context_names_both_numbers(model: LoadedModel) -> None:
    with pytest.raises(UsageError, match=r"prompt has 600 tokens, the context holds 512"):
        model.logits([5] * 600)


@pytest.mark.parametrize("ids", [[], [-1], [10**6]])
def test_tokens_outside_the_vocabulary_are_refused(model: LoadedModel, ids: list[int]) -> None:
    with pytest.raises(UsageError):
        model.logits(ids)


def test_a_grammar_binds_the_output(model: LoadedModel) -> None:
    sampling = SamplingOptions(temperature=1.0, seed=3, grammar='root ::= "yes" | "no"')
    for _ in range(3):
        assert "".join(token.text for token in model.generate([1, 5], sampling, 10)) in ("yes", "no")


def test_a_broken_grammar_is_a_usage_error(model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="grammar"):
        list(model.generate([1, 5], SamplingOptions(grammar="root ::= (")))


def test_a_file_that_llama_cpp_refuses_is_an_error_that_quotes_it(models: Path) -> None:
    path = models / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelRuntimeError, match=r"llama\.cpp refuses it: .+"):
        LoadedModel(path)


def test_a_simulated_model_reserves_memory_without_reading_weights(tiny: Path) -> None:
    with LoadedModel(tiny, RuntimeOptions(simulated=True, threads=1)) as simulated:
        assert "compute buffer size" in simulated.load_log


def test_nothing_of_llama_cpps_log_reaches_the_terminal(tiny: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from edgepack.edge.llama.runtime import LoadedModel, RuntimeOptions\n"
        "with LoadedModel(Path(sys.argv[1]), RuntimeOptions(threads=1)) as model: model.logits([1, 5])\n"
    )
    result = subprocess.run([sys.executable, "-c", script, tiny], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("first", "second", "length"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([1], [1], 1)]
)
def test_common_prefix_is_the_longest(first: list[int], second: list[int], length: int) -> None:
    assert common_prefix(first, second) == length
