"""`general.*` keys: gguf-py's rules, and a snapshot in the Hugging Face cache by its repository's name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import pytest
from gguf.metadata import Metadata

from edgepack.export.naming import Size, file_name, general_metadata

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
license: other
license_name: acme
license_link: LICENSE
language:
- en
- no
base_model:
- Qwen/Qwen2.5-7B
- https://huggingface.co/mistralai/Mistral-7B-v0.1
datasets: [a/b]
tags: [chat]
pipeline_tag: text-generation
---
# Title
"""


def described(folder: Path, card: str | None = None, config: dict | None = None, **files: dict) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    if card is not None:
        (folder / "README.md").write_text(card)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return {key: value.value for key, value in general_metadata(folder, "llama", Size(7_000_000_000)).items()}


def by_gguf_py(folder: Path) -> dict[str, Any]:
    card = Metadata.load(None, folder, None, 7_000_000_000)
    card.name = card.name or folder.name
    card.size_label = card.size_label or gguf.size_label(7_000_000_000, 7_000_000_000, 0, 0)
    writer = gguf.GGUFWriter(path=None, arch="llama")
    writer.add_type(gguf.GGUFType.MODEL)
    card.set_gguf_meta_model(writer)
    return {key: value.value for key, value in writer.kv_data[0].items()}


@pytest.mark.parametrize("name", ["Foo-7B-Instruct-v0.2", "plain", "Meta-Llama-3-8B", "x-2x7B-chat", "a b c"])
@pytest.mark.parametrize("card", [None, CARD, "no front matter", CARD.replace("\n", "\r\n")])
def test_the_keys_are_gguf_pys(tmp_path: Path, name: str, card: str | None) -> None:
    generation = {"top_k": 20, "temperature": 0.7}
    ours = described(tmp_path / name, card, {"_name_or_path": "acme/Bar-1B"}, generation_config=generation)
    assert ours == by_gguf_py(tmp_path / name)


@pytest.mark.parametrize(
    ("cached", "name", "organization"),
    [
        ("models--Acme-Corp--Foo-7B-Instruct-v0.2", "Foo 7B Instruct v0.2", "Acme Corp"),
        ("models--gpt2", "Gpt2", None),
        ("models--acme--a--b-7B", "A  B 7B", "Acme"),
    ],
)
def test_a_cached_snapshot_goes_by_its_repository(
    tmp_path: Path, cached: str, name: str, organization: str | None
) -> None:
    folder = tmp_path / cached / "snapshots" / COMMIT
    found = described(folder)
    assert found["general.organization" if organization else "general.name"] == (organization or name)
    assert found["general.name"].replace("  ", " ") == name.replace("  ", " ")
    assert COMMIT not in json.dumps(found)
    assert COMMIT not in file_name(general_metadata(folder, "llama", Size(7)), "Q4_K_M")
    (tmp_path / "link").symlink_to(folder)
    assert described(tmp_path / "link") == found


def test_a_repetition_penalty_is_llama_cpps_too(tmp_path: Path) -> None:
    found = described(tmp_path / "m", generation_config={"repetition_penalty": 1.1, "top_p": True})
    assert found["general.sampling.penalty_repeat"] == 1.1
    assert "general.sampling.top_p" not in found


@pytest.mark.parametrize(
    "card",
    [
        "---\n: [\n---\n", "---\n- a\n---\n", "---\nversion: 1.0\nlanguage: no\nlicense: [mit, 3]\nname: 12\n---\n",
        "---\nlanguage: [en, no, 3]\nbase_model: [null, {name: 3}, 7]\n---\n", "---\nbase_model: {a: b}\ndatasets: 3\n---\n",
        "---\ntags: 5\nbase_model:\n---\n", "---\nmodel_type: [a]\n---\n", "\xff---\n",
    ],
)  # fmt: skip
def test_a_card_of_odd_types_is_no_reason_not_to_export(tmp_path: Path, card: str) -> None:
    found = described(tmp_path / "model-7B", card)
    assert isinstance(found["general.name"], str)
    for key, value in found.items():
        assert isinstance(value, str | int | float | list), key
    assert found.get("general.languages") in (None, ["no"], ["en", "no", "3"])
