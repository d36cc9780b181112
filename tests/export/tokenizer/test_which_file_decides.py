"""Which tokenizer file decides: the ids, ends and templates are those of transformers' AutoTokenizer."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import sentencepiece
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models

from edgepack.errors import TokenizerError, UsageError
from edgepack.export.tokenizer.classes import as_loaded, class_name
from edgepack.export.tokenizer.files import read_files
from edgepack.export.tokenizer.vocabulary import open_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from edgepack.export.tokenizer.vocabulary import Vocabulary

BYTES = [f"<0x{value:02X}>" for value in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>", "<pad>", "<|endoftext|>", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
LETTERS = [*"abcdefghXÄ", "▁"]
MERGES = [("a", "b"), ("▁", "ab"), ("c", "d")]
TEXTS = ["ab cd", " ab  cd", "X ab\nÄ", "abcd abab", "ab é cd"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.set_verbosity_error()


def write(
    folder: Path, kind: str = "BPE", config: dict | None = None, settings: dict | None = None, **steps: Any
) -> None:
    """A tokenizer.json of a kind with steps of its own, and the files beside it."""
    tokens = [*SPECIAL, *LETTERS, *BYTES, *("".join(pair) for pair in MERGES)]
    vocab = {text: i for i, text in enumerate(tokens)}
    model = {
        "BPE": models.BPE(vocab, MERGES, fuse_unk=True, byte_fallback=True),
        "WordPiece": models.WordPiece(vocab, unk_token="[UNK]"),
        "Unigram": models.Unigram([(text, -float(i)) for i, text in enumerate(tokens)], unk_id=0),
    }[kind]
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(SPECIAL[:6])
    content = json.loads(tokenizer.to_str()) | steps
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
CLASSES = [None, "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer",
           "GPTNeoXTokenizer", "GemmaTokenizer", "CohereTokenizerFast", "RobertaTokenizer", "BertTokenizer",
           "T5Tokenizer", "XLMRobertaTokenizer", "MPNetTokenizer"]  # fmt: skip
TYPES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt2", "gpt_neox", "bert", "t5", "xlm-roberta", "phi3"]
OPTIONS = [{}, {"add_prefix_space": False, "do_lower_case": False, "legacy": True}]


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "Unigram"])
def test_steps_are_those_that_transformers_loads(tmp_path: Path, kind: str) -> None:
    """Every class of a kind with every type of model: normaliser and pre-tokenizer, or a refusal of another kind."""
    compared = 0
    for number, (model_type, declared) in enumerate((t, c) for t in TYPES for c in CLASSES):
        settings = {**OPTIONS[number % 2], **({"tokenizer_class": declared} if declared else {})}
        write(tmp_path, kind, {"model_type": model_type}, settings)
        stored = json.loads((tmp_path / "tokenizer.json").read_text())
        name = class_name(settings, {"model_type": model_type}, stored)
        try:
            ours, _ = as_loaded(name, settings, stored)
        except TokenizerError:
            continue
        theirs = json.loads(transformers.AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer.to_str())
        for key in ("normalizer", "pre_tokenizer"):
            assert plain(ours[key]) == plain(theirs[key]), (model_type, declared, key)
        compared += 1
    assert compared >= 20


def plain(step: Any) -> Any:
    if isinstance(step, dict):
        return {key: plain(value) for key, value in step.items() if key not in ("trim_offsets", "invert")}
    return [plain(entry) for entry in step] if isinstance(step, list) else step


def test_a_class_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "WordPiece", settings={"tokenizer_class": "LlamaTokenizer"})
    with pytest.raises(TokenizerError, match="LlamaTokenizer makes BPE"):
        open_vocabulary(tmp_path, {"model_type": "llama"})


def special(vocabulary: Vocabulary, role: str) -> str | None:
    value = vocabulary.metadata.get(f"tokenizer.ggml.{role}_token_id")
    return None if value is None else vocabulary.metadata["tokenizer.ggml.tokens"].value[value.value]


def adds(vocabulary: Vocabulary, role: str) -> bool:
    return vocabulary.metadata[f"tokenizer.ggml.add_{role}_token"].value


AROUND = {"type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
          "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
          "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}  # fmt: skip
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("processor", [None, AROUND], ids=["no post-processor", "begins with bos"])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("declared", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_what_is_added_to_a_text_is_what_transformers_adds(tmp_path: Path, processor, flags, declared) -> None:
    write(tmp_path, settings={**NAMES, **flags, "tokenizer_class": declared}, pre_tokenizer=METASPACE,
          post_processor=processor)  # fmt: skip
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)("ab").input_ids
    vocabulary = open_vocabulary(tmp_path, {"model_type": "llama"})
    assert (adds(vocabulary, "bos"), adds(vocabulary, "eos")) == (ids[0] == 1, ids[-1] == 2)


FILES = {
    "tokenizer_config alone": ({"eos_token": "</s>"}, {}),
    "special_tokens_map beside it": ({"eos_token": "</s>"}, {"special_tokens_map": {"eos_token": "<|im_end|>"}}),
    "special_tokens_map, an object": (
        {"eos_token": "</s>"},
        {"special_tokens_map": {"eos_token": {"content": "<pad>", "lstrip": False, "rstrip": False}}},
    ),
    "added_tokens_decoder makes it stale": (
        {"eos_token": "</s>", "added_tokens_decoder": {"3": {"content": "<|im_end|>", "special": True}}},
        {"special_tokens_map": {"eos_token": "<|im_end|>"}},
    ),
    "special_tokens_map alone": (None, {"special_tokens_map": {"eos_token": "<pad>", "bos_token": "<s>"}}),
    "an object in tokenizer_config": ({"eos_token": {"__type": "AddedToken", "content": "<pad>"}}, {}),
    "null": ({"eos_token": None, "bos_token": "<s>"}, {}),
}


@pytest.mark.parametrize("case", FILES)
def test_the_end_is_the_one_that_transformers_has(tmp_path: Path, case: str) -> None:
    settings, files = FILES[case]
    write(tmp_path, settings=settings, pre_tokenizer=METASPACE)
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    vocabulary = open_vocabulary(tmp_path, {})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert special(vocabulary, "eos") == theirs.eos_token
    if case.startswith(("special_tokens_map b", "special_tokens_map, ", "added_tokens_decoder")):
        assert any("special tokens: eos_token" in note for note in vocabulary.notes)


@pytest.mark.parametrize(
    "added",
    [
        {"<|new|>": 300},
        {"<|new|>": 281, "<|more|>": 282},
        {"ab": 290, "<|new|>": 281},
        {"<|more|>": 500, "<|new|>": 499},
    ],
)
@pytest.mark.parametrize("where", ["added_tokens.json", "added_tokens_decoder"])
def test_added_tokens_have_the_ids_that_transformers_gives_them(tmp_path: Path, added: dict, where: str) -> None:
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if where == "added_tokens_decoder":
        settings[where] = {str(i): {"content": text, "special": False} for text, i in added.items()}
    write(tmp_path, settings=settings, pre_tokenizer=METASPACE)
    if where == "added_tokens.json":
        (tmp_path / where).write_text(json.dumps(added))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    tokens = open_vocabulary(tmp_path, {}).metadata["tokenizer.ggml.tokens"].value
    assert {text: tokens.index(text) for text in added} == {text: theirs[text] for text in added}


DRAWN = ["<s>", "</s>", "<|im_end|>", "a", "X", "ab", "<|new|>", "<|more|>", "<pad>", "[CLS]", "cd"]


def drawn_settings(rng: random.Random) -> dict[str, Any]:
    """A tokenizer_config.json with special tokens in every spelling."""
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    settings: dict[str, Any] = {}
    for role in ("bos", "eos", "pad", "unk", "mask", "image"):
        if rng.random() < 0.4:
            text = rng.choice(DRAWN)
            settings[f"{role}_token"] = rng.choice([text, {"__type": "AddedToken", "content": text, **flags}])
    if rng.random() < 0.3:
        settings["additional_special_tokens"] = rng.sample(DRAWN, 2)
    if rng.random() < 0.2:
        settings["extra_special_tokens"] = rng.choice([rng.sample(DRAWN, 2), {"image_token": "<|new|>"}])
    if rng.random() < 0.3:
        first = rng.choice([3, 281, 290, 400])
        settings["added_tokens_decoder"] = {
            str(first + i): {"content": text, "special": rng.random() < 0.5, **flags}
            for i, text in enumerate(rng.sample(DRAWN, 2))
        }
    declared = rng.choice([None, "LlamaTokenizer", "PreTrainedTokenizerFast"])
    return settings | ({} if declared is None else {"tokenizer_class": declared})


def test_special_and_added_tokens_are_those_of_transformers_whatever_names_them(tmp_path: Path) -> None:
    rng = random.Random(1)
    for number in range(80):
        folder = tmp_path / str(number)
        write(folder, settings=drawn_settings(rng), pre_tokenizer=METASPACE)
        if rng.random() < 0.2:
            added = {text: 500 + i for i, text in enumerate(rng.sample(DRAWN, 2))}
            (folder / "added_tokens.json").write_text(json.dumps(added))
        if rng.random() < 0.2:
            names = {"eos_token": rng.choice(DRAWN), "pad_token": rng.choice(DRAWN)}
            (folder / "special_tokens_map.json").write_text(json.dumps(names))
        theirs = transformers.AutoTokenizer.from_pretrained(folder).added_tokens_decoder
        ours = read_files(folder, {"model_type": "llama"}).added
        expected = {index: (token.content, token.special) for index, token in theirs.items()}
        assert {index: (token.text, token.special) for index, token in ours.items()} == expected, number


def templates(folder: Path) -> dict[str, str]:
    found = transformers.AutoTokenizer.from_pretrained(folder).chat_template
    return found if isinstance(found, dict) else {} if found is None else {"default": found}


@pytest.mark.parametrize(
    "field", [None, "FIELD", [{"name": "default", "template": "F"}, {"name": "rag", "template": "R"}]]
)
@pytest.mark.parametrize("jinja", [None, "FILE"])
@pytest.mark.parametrize("extra", [(), ("tool_use",), ("default",)])
def test_the_chat_template_is_the_one_that_transformers_has(tmp_path: Path, field, jinja, extra) -> None:
    write(tmp_path, settings={**NAMES, **({} if field is None else {"chat_template": field})}, pre_tokenizer=METASPACE)
    if jinja:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    for name in extra:
        (tmp_path / "additional_chat_templates").mkdir(exist_ok=True)
        (tmp_path / f"additional_chat_templates/{name}.jinja").write_text(name.upper())
    vocabulary = open_vocabulary(tmp_path, {})
    keys = {key: value.value for key, value in vocabulary.metadata.items() if "chat_template" in key}
    ours = {key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default": text
            for key, text in keys.items() if not key.endswith("chat_templates")}  # fmt: skip
    assert ours == templates(tmp_path)
    assert any("chat template" in note for note in vocabulary.notes) == (field is not None and bool(jinja or extra))


def test_an_older_tokenizer_json_is_for_older_versions(tmp_path: Path) -> None:
    write(tmp_path, settings={**NAMES, "fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json", "tokenizer.99.0.json"]},
          pre_tokenizer=METASPACE)  # fmt: skip
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] = {("newer" if text == "Ä" else text): i for text, i in content["model"]["vocab"].items()}
    (tmp_path / "tokenizer.4.0.0.json").write_text(json.dumps(content))
    assert "newer" in transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert "newer" in open_vocabulary(tmp_path, {}).metadata["tokenizer.ggml.tokens"].value


@pytest.mark.parametrize("lower", [True, False, None])
def test_tokenizer_config_decides_over_lower_casing(tmp_path: Path, lower: bool | None) -> None:
    stored = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
              "lowercase": lower is False}  # fmt: skip
    settings = {"tokenizer_class": "BertTokenizer"} | ({} if lower is None else {"do_lower_case": lower})
    write(
        tmp_path,
        "WordPiece",
        {"model_type": "bert"},
        settings,
        normalizer=stored,
        pre_tokenizer={"type": "BertPreTokenizer"},
    )
    theirs = json.loads(transformers.AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer.to_str())
    vocabulary = open_vocabulary(tmp_path, {"model_type": "bert"})
    assert vocabulary.metadata["tokenizer.ggml.normalizer.lowercase"].value is theirs["normalizer"]["lowercase"]
    assert any("normalizer" in note for note in vocabulary.notes)


def test_vocab_json_and_merges_txt_are_read_by_the_class(tmp_path: Path) -> None:
    letters = {chr(code): i for i, code in enumerate(range(33, 127))} | {
        "Ġ": 94,
        "Ġa": 95,
        "ab": 96,
        "<|endoftext|>": 97,
    }
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\na b\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    vocabulary = open_vocabulary(tmp_path, {"model_type": "gpt2"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert vocabulary.metadata["tokenizer.ggml.merges"].value == ["Ġ a", "a b"]
    assert vocabulary.metadata["tokenizer.ggml.pre"].value == "gpt-2"
    assert special(vocabulary, "eos") == theirs.eos_token == "<|endoftext|>"


ENDS = {
    "generation_config, a number": ({"eos_token_id": 3}, {}, [3]),
    "generation_config, a list": ({"eos_token_id": [3, 4]}, {}, [3, 4]),
    "generation_config, another than config": ({"eos_token_id": 3}, {"eos_token_id": 4}, [3]),
    "config, a number": (None, {"eos_token_id": 3}, [3]),
    "config, a list": (None, {"eos_token_id": [4, 3]}, [4, 3]),
    "generation_config without one": ({"top_p": 0.9}, {"eos_token_id": 3}, [3]),
    "five": ({"eos_token_id": [11, 12, 13, 14, 15]}, {}, [11, 12, 13, 14, 15]),
    "beyond the vocabulary": ({"eos_token_id": [3, 9999]}, {}, [3, 9999]),
}


@pytest.mark.parametrize("case", ENDS)
def test_every_stop_token_is_written_or_said(tmp_path: Path, case: str) -> None:
    generation, config, ends = ENDS[case]
    write(tmp_path, config=config, settings=NAMES, pre_tokenizer=METASPACE)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    vocabulary = open_vocabulary(tmp_path, config)
    written = {
        vocabulary.metadata[key].value
        for key in vocabulary.metadata
        if key.endswith(("eos_token_id", "eot_token_id", "eom_token_id"))
    }
    said = " ".join(note for note in vocabulary.notes if "stop tokens" in note)
    assert all(end in written or str(end) in said for end in ends)
    assert special(vocabulary, "eos") == "</s>"
    assert "ends a text too" in said


def sentencepiece_model(folder: Path, **options: Any) -> None:
    """A trained model file over its own little text."""
    folder.mkdir(exist_ok=True)
    text = folder.parent / "text.txt"
    text.write_text(
        "the quick brown fox jumps over the lazy dog\n" * 20 + "\n".join(f"word{i} thing{i}" for i in range(200))
    )
    settings = {"vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False, "minloglevel": 2} | options  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / "tokenizer"), **settings)


def test_a_stale_tokenizer_model_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, settings={**NAMES, "tokenizer_class": "LlamaTokenizer"})
    sentencepiece_model(tmp_path)
    vocabulary = open_vocabulary(tmp_path, {"model_type": "llama"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    tokens = vocabulary.metadata["tokenizer.ggml.tokens"].value
    assert {text: i for i, text in enumerate(tokens)} == theirs
    assert any("tokenizer.model beside it has other pieces" in note for note in vocabulary.notes)


SAID = {
    "normaliser": ({"normalization_rule_name": "nfkc_cf"}, "normalises text"),
    "no dummy prefix": ({"add_dummy_prefix": False}, "puts a space"),
    "collapsing": ({"remove_extra_whitespaces": True}, "collapses runs"),
}


@pytest.mark.parametrize("case", SAID)
@pytest.mark.parametrize("declared", ["LlamaTokenizer", "GemmaTokenizer"])
def test_a_class_decides_over_the_options_of_a_model_file(tmp_path, load_vocabulary, case, declared) -> None:
    options, needle = SAID[case]
    sentencepiece_model(tmp_path / "m", **options)
    config = {"model_type": "llama" if declared == "LlamaTokenizer" else "gemma2"}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    (tmp_path / "m/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": declared}))
    vocabulary = open_vocabulary(tmp_path / "m", config)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    llama = load_vocabulary(vocabulary.metadata)
    for text in ("the  quick fox", "Ünïcode ﬁx THE", "the dog\n中"):
        assert llama.tokenize(text.encode(), add_bos=False) == theirs(text, add_special_tokens=False).input_ids
    differ = case != "no dummy prefix" or declared == "LlamaTokenizer"
    assert any(needle in note and "decides" in note for note in vocabulary.notes) == differ


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"byte_fallback": False, "vocab_size": 200}, "256 byte tokens"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalise"),
        ({"remove_extra_whitespaces": True}, "runs of spaces"),
        ({"treat_whitespace_as_suffix": True}, "suffix"),
        ({"model_type": "unigram", "byte_fallback": True}, "byte fall-back"),
        ({"model_type": "char", "byte_fallback": False, "vocab_size": 60, "hard_vocab_limit": False}, "char"),
        ({"model_type": "word", "byte_fallback": False, "vocab_size": 60, "hard_vocab_limit": False}, "word"),
    ],
)
def test_an_option_that_llama_cpp_does_not_have_is_refused(tmp_path: Path, options: dict, needle: str) -> None:
    sentencepiece_model(tmp_path / "m", **options)
    with pytest.raises(TokenizerError, match=needle):
        open_vocabulary(tmp_path / "m", {})


def test_a_model_that_leaves_spaces_is_refused(tmp_path: Path) -> None:
    sentencepiece_model(tmp_path / "m")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((tmp_path / "m/tokenizer.model").read_bytes())
    proto.normalizer_spec.escape_whitespaces = False
    (tmp_path / "m/tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(TokenizerError, match="escape_whitespaces"):
        open_vocabulary(tmp_path / "m", {})


def test_a_model_file_alone_is_read_as_sentencepiece_reads_it(tmp_path, load_vocabulary) -> None:
    for prefix in (True, False):
        sentencepiece_model(tmp_path / "m", add_dummy_prefix=prefix)
        reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "m/tokenizer.model"))
        llama = load_vocabulary(open_vocabulary(tmp_path / "m", {}).metadata)
        for text in ("the  quick fox", " the dog\n中", "é"):
            assert llama.tokenize(text.encode(), add_bos=False) == reference.encode(text)


@pytest.mark.parametrize("pre", ["nonsense", "", "Qwen2", "llama-bpe "])
def test_a_pre_tokenizer_that_llama_cpp_does_not_know_is_refused(tmp_path: Path, pre: str) -> None:
    write(tmp_path, settings=NAMES, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "use_regex": True})
    with pytest.raises(UsageError, match="--pre"):
        open_vocabulary(tmp_path, {}, pre=pre)


def test_a_pre_tokenizer_for_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path, settings=NAMES, pre_tokenizer=METASPACE)
    with pytest.raises(UsageError, match="only byte-level BPE"):
        open_vocabulary(tmp_path, {}, pre="qwen2")
