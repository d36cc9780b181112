"""Tokenizer files with any value replaced by any other: a vocabulary comes out, or one of our errors."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.errors import EdgepackError
from edgepack.export.tokenizer.vocabulary import read_vocabulary

ADDED = [{"id": 4, "content": "<s>", "special": True}, {"id": 5, "content": "</s>", "special": True}]
POST = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTES = {f"<0x{value:02X}>": 10 + value for value in range(256)}
TOKENIZERS = {
    "byte-level": {
        "added_tokens": ADDED,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]},
        "post_processor": POST,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "ignore_merges": False},
    },
    "escaped": {
        "added_tokens": ADDED,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>",
                  "vocab": {"a": 0, "▁": 1, "▁a": 2, "<unk>": 3, **BYTES}, "merges": ["▁ a"]},
    },
    "unigram": {
        "added_tokens": ADDED[:1],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAA"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        ]},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.5], ["b", -2]]},
    },
    "wordpiece": {
        "added_tokens": [{"id": 0, "content": "[UNK]", "special": True}],
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2]},
        "model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "##b": 4}},
    },
}  # fmt: skip
SETTINGS = {
    "bos_token": {"content": "<s>"},
    "eos_token": "</s>",
    "add_bos_token": True,
    "chat_template": [{"name": "default", "template": "x"}],
    "added_tokens_decoder": {"5": {"content": "</s>", "special": True}},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 40) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, inner in items for place in places(inner, (*path, key))]


def replaced(value: Any, path: tuple, new: Any) -> Any:
    changed = copy.deepcopy(value)
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = new
    return changed


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_untouched_files_are_read(kind, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZERS[kind]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    assert read_vocabulary(tmp_path, {})["tokenizer.ggml.tokens"].value


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_makes_it_fail_otherwise(kind, tmp_path, data):
    files = {"tokenizer": TOKENIZERS[kind], "tokenizer_config": SETTINGS, "generation_config": {"eos_token_id": [1, 2]}}
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(files)))
        path = data.draw(st.sampled_from([place for place in places(files[name]) if "0x" not in str(place)]))
        files[name] = replaced(files[name], path, data.draw(JSON))
        if not isinstance(files[name], dict):
            return
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    config = {"vocab_size": data.draw(st.sampled_from([300, 0, "x", None, 1 << 50])), "bos_token_id": data.draw(JSON)}
    try:
        metadata = read_vocabulary(tmp_path, config)
    except EdgepackError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    tokens = metadata["tokenizer.ggml.tokens"].value
    assert len(set(tokens)) == len(tokens)
    assert all(value.value < len(tokens) for key, value in metadata.items() if key.endswith("_token_id"))
