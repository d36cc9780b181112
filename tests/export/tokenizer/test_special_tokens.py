"""Special tokens and chat templates: gguf-py's SpecialVocab is the reference where it has a rule."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import gguf
import pytest

from edgepack.errors import TokenizerError
from edgepack.export.notes import limits
from edgepack.export.tokenizer.vocabulary import read_vocabulary
from edgepack.gguf.types import boolean, string, u32

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["a", "Ċ", "<s>", "</s>", "<|im_end|>", "<pad>", "<|eom_id|>", "<unk>"]
KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}


def template(*, first: str | None = None, last: str | None = None) -> dict:
    around = [[{"SpecialToken": {"id": text, "type_id": 0}}] if text else [] for text in (first, last)]
    return {"type": "TemplateProcessing", "single": [*around[0], {"Sequence": {"id": "A", "type_id": 0}}, *around[1]]}


def write(folder: Path, settings: dict, config: dict, post_processor: dict | None = None, **files: object) -> None:
    tokenizer = {
        "added_tokens": [{"id": i, "content": text, "special": True} for i, text in enumerate(TEXTS) if len(text) > 1],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "post_processor": post_processor,
        "model": {"type": "BPE", "vocab": {"a": 0, "Ċ": 1}, "merges": []},
    }
    contents = {"tokenizer": tokenizer, "tokenizer_config": settings, "config": config, **files}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


CASES = {
    "names": ({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}, {}, None),
    "objects": ({"bos_token": {"content": "<s>"}, "eos_token": {"content": "<|im_end|>"}}, {}, None),
    "ids": ({}, {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 5}, None),
    "names before ids": ({"eos_token": "</s>"}, {"eos_token_id": 3, "bos_token_id": 2}, None),
    "template": ({"bos_token": "<s>", "eos_token": "</s>"}, {}, template(first="<s>")),
    "template with end": ({"bos_token": "<s>", "eos_token": "</s>"}, {}, template(first="<s>", last="</s>")),
    "byte level adds none": ({"bos_token": "<s>", "eos_token": "</s>"}, {}, {"type": "ByteLevel"}),
    "cls and sep": ({"cls_token": "<s>", "sep_token": "</s>"}, {}, template(first="<s>", last="</s>")),
    "another end": ({"bos_token": "<s>", "eos_token": "<|im_end|>"}, {}, template(first="<s>", last="</s>")),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_and_flags_equal_gguf_pys(case, tmp_path):
    settings, config, post_processor = CASES[case]
    write(tmp_path, settings, config, post_processor)
    metadata = read_vocabulary(tmp_path, config)
    reference = gguf.SpecialVocab(tmp_path, n_vocab=len(TEXTS))
    ids = {f"tokenizer.ggml.{KEYS.get(role, role)}_token_id": i for role, i in reference.special_token_ids.items()}
    assert {key: value.value for key, value in metadata.items() if key.endswith("token_id")} == ids
    flags = {f"tokenizer.ggml.add_{role}_token": flag for role, flag in reference.add_special_token.items()}
    ours = {key: value.value for key, value in metadata.items() if key.startswith("tokenizer.ggml.add_")}
    # gguf-py leaves out what a template does not add; llama.cpp's default may then add it
    assert ours == {key: flags.get(key, False) for key in ours}
    assert flags.keys() <= ours.keys()


def test_a_template_decides_over_the_flag_as_in_transformers(tmp_path):
    write(tmp_path, {"bos_token": "<s>", "add_bos_token": False}, {}, template(first="<s>"))
    assert read_vocabulary(tmp_path, {})["tokenizer.ggml.add_bos_token"].value is True


def test_every_listed_end_ends_generation(tmp_path):
    write(tmp_path, {"eos_token": "</s>"}, {}, generation_config={"eos_token_id": [3, 6, 4]})
    metadata = read_vocabulary(tmp_path, {})
    roles = {role: metadata[f"tokenizer.ggml.{role}_token_id"].value for role in ("eos", "eot", "eom")}
    assert roles == {"eos": 3, "eot": 4, "eom": 6}


def test_a_glm_style_list_of_ends_fills_both_roles(tmp_path):
    write(tmp_path, {"eos_token": "</s>"}, {"eos_token_id": [3, 4, 5]})
    metadata = read_vocabulary(tmp_path, {"eos_token_id": [3, 4, 5]})
    assert metadata["tokenizer.ggml.eot_token_id"].value == 4
    assert metadata["tokenizer.ggml.eom_token_id"].value == 5


def templates(folder: Path) -> dict:
    metadata = read_vocabulary(folder, {})
    return {key.removeprefix("tokenizer."): v.value for key, v in metadata.items() if "chat_template" in key}


def test_a_template_in_tokenizer_config(tmp_path):
    write(tmp_path, {"chat_template": "{{ messages }}"}, {})
    assert templates(tmp_path) == {"chat_template": "{{ messages }}"}


@pytest.mark.parametrize("shape", ["list", "object"])
def test_several_named_templates(tmp_path, shape):
    named = {"default": "D", "tool use": "T", "rag": "R"}
    listed = [{"name": name, "template": text} for name, text in named.items()]
    write(tmp_path, {"chat_template": listed if shape == "list" else named}, {})
    assert templates(tmp_path) == {
        "chat_template": "D",
        "chat_templates": ["rag", "tool_use"],
        "chat_template.rag": "R",
        "chat_template.tool_use": "T",
    }


def test_templates_in_files_of_their_own(tmp_path):
    write(tmp_path, {}, {})
    (tmp_path / "chat_template.jinja").write_text("D")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/tool_use.jinja").write_text("T")
    assert templates(tmp_path) == {"chat_template": "D", "chat_templates": ["tool_use"], "chat_template.tool_use": "T"}


def test_a_template_in_chat_template_json(tmp_path):
    write(tmp_path, {}, {}, chat_template={"chat_template": "J"})
    assert templates(tmp_path) == {"chat_template": "J"}


@pytest.mark.parametrize("bad", [7, [7], [{"name": "x"}], [{"name": 1, "template": "x"}], {"": "x"}, {"a" * 65: "x"}])
def test_a_template_of_a_wrong_type_is_refused(tmp_path, bad):
    write(tmp_path, {"chat_template": bad}, {})
    with pytest.raises(TokenizerError, match="chat_template"):
        read_vocabulary(tmp_path, {})


@pytest.mark.parametrize(
    ("metadata", "needle"),
    [
        ({"tokenizer.ggml.pre": string("gpt-4o")}, "combining marks"),
        ({"tokenizer.ggml.normalizer.lowercase": boolean(True)}, "Hangul"),
        ({"tokenizer.ggml.pre": string("llama-bpe")}, None),
        ({"tokenizer.ggml.normalizer.lowercase": boolean(False)}, None),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_coarser_is_said_so(metadata, needle):
    family = SimpleNamespace(name="llama", nested=None, unused=(), remarks=lambda _config: ())
    found = limits(family, {}, {"llama.context_length": u32(8), **metadata}, SimpleNamespace(specs={}))
    assert [needle in line for line in found] == ([True] if needle else [])
