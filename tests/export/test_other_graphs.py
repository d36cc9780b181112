"""What is refused because the installed llama.cpp computes another function: that it does, and in which parts alone.

Each test writes the file as llama.cpp's converter has it. When an upgrade of the library makes one fail, the model can
be supported: its refusal in `export/rules/without_graph.py` or in its family goes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from references.family_oracle import error_of, exported, llama_logits, token_ids, torch_logits
from references.tiny_checkpoints import TinyModel, random_model, rewrite_config, write_checkpoint

from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.errors import EdgepackError, UnsupportedModelError
from edgepack.export import mapped_model
from edgepack.export.config import ModelConfig
from edgepack.export.gguf_file import write_gguf
from edgepack.export.mapped_model import open_model
from edgepack.export.plan import plan_export
from edgepack.export.rules.classifier import classifier_rules, ranking_dimensions, ranking_metadata
from edgepack.export.rules.decoder import LAYER, LLAMA_NORMS, attention_rules, embedding_rules, norm_rules, router_rule
from edgepack.export.rules.experts import expert_rules
from edgepack.export.rules.family import Family, TensorRule
from edgepack.export.rules.mapping import find_family
from edgepack.export.rules.metadata import common_metadata
from edgepack.gguf.types import string
from edgepack.quant.types.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

OTHER = 0.05  # standard deviations of the logits: far beyond what rounding explains
BITNET = TinyModel("bitnet-2b", "BitNet", {"hidden_act": "relu2", "tie_word_embeddings": True})
PHI_MOE = TinyModel(
    "phi-moe",
    "Phimoe",
    {"num_local_experts": 8, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True},
)
PHI_MOE_FAMILY = Family(  # llama.cpp's phimoe, whose every bias is required
    name="phimoe",
    classes=("PhimoeForCausalLM",),
    defaults={},
    metadata=lambda config: common_metadata(config, "phimoe"),
    tensors=(
        *embedding_rules(),
        TensorRule("output.bias", "lm_head.bias", "v"),
        TensorRule("output_norm.bias", "model.norm.bias", "d"),
        *norm_rules(LLAMA_NORMS),
        *(TensorRule(f"blk.{{i}}.{ours}.bias", f"{LAYER}{theirs}.bias", "d") for ours, theirs in LLAMA_NORMS.items()),
        *attention_rules(output_bias=True),
        router_rule(LAYER + "mlp.router.weight"),
        *expert_rules(LAYER + "mlp.experts.", width="ff"),
    ),
)
JINA_3 = TinyModel("jina-3-ranker", "JinaEmbeddingsV3", {"num_labels": 1}, "ForSequenceClassification")


class BiasedRMSNorm(torch.nn.Module):
    """A LayerNorm whose mean stays."""

    def __init__(self, norm: torch.nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


def by_softmax(scores: torch.Tensor, top_k: int = 2, **_settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The best experts, their weights with a sum of one."""
    best, chosen = scores.topk(top_k)
    return best.softmax(-1), chosen


def with_rms_norms(model: Any) -> Any:
    """The model with llama.cpp's norms."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.LayerNorm):
                setattr(module, name, BiasedRMSNorm(child))
    return model


def test_the_graph_of_bitnet_has_silu_whatever_the_file_says(books: Path, tmp_path: Path) -> None:
    model, ids = random_model(BITNET), token_ids()
    folder = write_checkpoint(model, tmp_path / "model", books)
    expected = torch_logits(model, ids)
    rewrite_config(folder, {"hidden_act": "silu"})
    mapped = open_model(folder)
    said = replace(mapped, metadata={**mapped.metadata, "bitnet.hidden_activation": string("relu2")})
    logits = []
    for number, each in enumerate((mapped, said)):
        path = tmp_path / f"{number}.gguf"
        write_gguf(plan_export(each, find_target("f32")), path)
        logits.append(llama_logits(path, ids))
    assert error_of(logits[0], expected) > OTHER
    assert (logits[0] == logits[1]).all()


def test_the_graph_of_phi_moe_differs_in_its_norms_and_in_its_mixer_and_in_nothing_else(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_model, "find_family", lambda _config: PHI_MOE_FAMILY)
    model, ids = random_model(PHI_MOE), token_ids()
    folder = write_checkpoint(model, tmp_path / "model", books, fused_experts=True)
    found = llama_logits(exported(folder, tmp_path / "model.gguf"), ids)
    assert error_of(found, torch_logits(model, ids)) > OTHER
    assert error_of(found, torch_logits(with_rms_norms(model), ids)) > OTHER  # the mixer alone
    monkeypatch.setattr("transformers.models.phimoe.modeling_phimoe.sparsemixer", by_softmax)
    assert error_of(found, torch_logits(model, ids)) < 1e-4
    again = random_model(PHI_MOE)  # the norms alone
    assert error_of(found, torch_logits(again, ids)) > OTHER


def test_the_graph_of_jina_3_has_no_head_of_scores(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(random_model(JINA_3), tmp_path / "model", books, fused_experts=True)
    with pytest.raises(UnsupportedModelError, match="JinaEmbeddingsV3ForSequenceClassification: .* no head of scores"):
        open_model(folder)
    family = find_family(ModelConfig({"architectures": ["JinaEmbeddingsV3Model"]}))
    ranker = replace(
        family,
        metadata=lambda config: family.metadata(config) | ranking_metadata(config, "jina-bert-v3"),
        dimensions=lambda config: {**family.dimensions(config), **ranking_dimensions(config)},
        renames=(("", "roberta."), ("", "model.")),
        tensors=(*family.tensors, *classifier_rules("classifier.dense", "classifier.out_proj")),
    )
    monkeypatch.setattr(mapped_model, "find_family", lambda _config: ranker)
    path = exported(folder, tmp_path / "model.gguf")
    with pytest.raises(EdgepackError, match="wrong number of tensors"):
        LoadedModel(path, RuntimeOptions(n_ctx=256, threads=1))
