"""Configurations as they were published with transformers 4 mean what they mean when transformers 5 writes them.

`published_configs.json` has one of each family with its number of parameters, where known. transformers reads
it and is the reference for both: the configuration that it writes, and the tensors of the model that it builds.
"""

from __future__ import annotations

import json
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from conftest import ROOT
from synthetic_checkpoint import SyntheticTensors, bf16_specs

from edgepack.export.config import ModelConfig
from edgepack.export.rules.mapping import completed, find_family, map_tensors, observed

if TYPE_CHECKING:
    from edgepack.gguf.types import Value

PUBLISHED: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/data/published_configs.json").read_text())


@cache
def rewritten(name: str) -> dict[str, Any]:
    """The configuration as transformers 5 writes it."""
    published = PUBLISHED[name]["config"]
    model_class = getattr(transformers, published["architectures"][0])
    written: dict[str, Any] = json.loads(model_class.config_class.from_dict(published).to_json_string(use_diff=False))
    return written | {"architectures": published["architectures"]}


def metadata_of(config: dict[str, Any]) -> dict[str, Value]:
    published = ModelConfig(config)
    family = find_family(published)
    return family.metadata(completed(published, family))


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_spellings_give_the_same_metadata(name: str) -> None:
    written = rewritten(name)
    assert "rope_scaling" not in written
    assert metadata_of(written) == metadata_of(PUBLISHED[name]["config"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_the_published_model_is_mapped(name: str) -> None:
    config = ModelConfig(rewritten(name))
    with torch.device("meta"):
        model = getattr(transformers, config.architecture)(
            getattr(transformers, config.architecture).config_class.from_dict(config.values)
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    family = find_family(config)
    config = observed(completed(config, family), family, shapes)
    mapped = map_tensors(family, config, SyntheticTensors(bf16_specs(shapes)))
    count = sum(prod(rows.shape) for key, rows in mapped.items() if not key.startswith("rope_"))
    assert PUBLISHED[name]["parameters"] in (count, None)


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("meta-llama/Llama-3.2-1B", "llama.rope.freq_base", 500000.0),
        ("google/gemma-3-1b-it", "gemma3.rope.freq_base", 1e6),
        ("google/gemma-3-1b-it", "gemma3.rope.freq_base_swa", 10000.0),
        ("google/gemma-3-1b-it", "gemma3.attention.sliding_window_pattern", [(i + 1) % 6 != 0 for i in range(26)]),
        ("microsoft/Phi-4-mini-instruct", "phi3.rope.dimension_count", 96),
        ("microsoft/Phi-4-mini-instruct", "phi3.rope.scaling.original_context_length", 4096),
        ("Qwen/Qwen3-30B-A3B", "qwen3moe.expert_count", 128),
        ("openai-community/gpt2", "gpt2.feed_forward_length", 3072),
        ("EleutherAI/pythia-70m", "gptneox.rope.dimension_count", 16),
        ("zai-org/GLM-4.5-Air", "glm4moe.block_count", 47),
        ("openai/gpt-oss-20b", "gpt-oss.rope.freq_base", 150000.0),
        ("openai/gpt-oss-20b", "gpt-oss.attention.sliding_window_pattern", [i % 2 == 0 for i in range(24)]),
        ("LiquidAI/LFM2-1.2B", "lfm2.feed_forward_length", 8192),
        ("LiquidAI/LFM2-1.2B", "lfm2.rope.freq_base", 1e6),
        ("state-spaces/mamba-130m-hf", "mamba.ssm.time_step_rank", 48),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen3next.rope.dimension_count", 64),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen3next.rope.freq_base", 1e7),
        ("ai21labs/Jamba-v0.1", "jamba.attention.head_count_kv", [8 if i % 8 == 4 else 0 for i in range(32)]),
    ],
)
def test_metadata_holds_what_was_published(name: str, key: str, expected: object) -> None:
    for config in (PUBLISHED[name]["config"], rewritten(name)):
        assert metadata_of(config)[key].value == expected


@pytest.mark.parametrize(
    ("name", "changes", "context"),
    [
        ("mistralai/Mistral-7B-v0.1", {}, 4096),  # the window
        ("mistralai/Mistral-7B-v0.1", {"sliding_window": None}, 32768),  # v0.2 and later
        ("mistralai/Mistral-7B-v0.1", {"sliding_window": 65536}, 32768),
        ("Qwen/Qwen2.5-0.5B", {"sliding_window": 1024}, 32768),  # switched off
        ("Qwen/Qwen2.5-0.5B", {"sliding_window": 1024, "use_sliding_window": True}, 1024),
        ("microsoft/Phi-3-mini-4k-instruct", {}, 2047),
        ("bigcode/starcoder2-3b", {}, 4096),
    ],
)
def test_context_ends_where_a_window_that_the_graph_lacks_would_matter(
    name: str, changes: dict[str, Any], context: int
) -> None:
    config = PUBLISHED[name]["config"] | changes
    metadata = metadata_of(config)
    family = find_family(ModelConfig(config))
    assert metadata[f"{family.name}.context_length"].value == context


def test_the_norms_epsilon_is_the_one_that_transformers_reads() -> None:
    llama = PUBLISHED["meta-llama/Llama-3.2-1B"]["config"] | {"layer_norm_eps": 0.5}
    assert metadata_of(llama)["llama.attention.layer_norm_rms_epsilon"].value == 1e-5
    starcoder = PUBLISHED["bigcode/starcoder2-3b"]["config"] | {"layer_norm_epsilon": 0.5}
    assert metadata_of(starcoder)["starcoder2.attention.layer_norm_epsilon"].value == 1e-5
