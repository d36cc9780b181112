"""Every family × what edgepack does: a cell works, or is refused by the reason that stands here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT
from families_table import eyes_cell, read_figures
from figure_file import all_figures
from references.defined_models import DEFINED, DefinedModel
from references.family_cells import CELLS, run_cell
from references.hybrid_models import HYBRIDS
from references.tiny_checkpoints import TinyModel, random_model, write_checkpoint
from references.tiny_decoders import DECODERS
from references.tiny_encoders import EMBEDDERS, RANKERS

from edgepack.export.projector import projectors
from edgepack.export.rules.mapping import families

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MATRIX = (
    "qwen-3-next", "qwen-3.5", "qwen-3.5-moe-with-eyes", "gemma-4-e2b", "gemma-4-26b", "gemma-1", "lfm-2",
    "lfm-2-moe", "granite-moe", "granite-4-hybrid-moe", "granite-4-dense", "gpt-oss", "mamba", "mamba-2", "falcon-h1",
    "nemotron-h", "nemotron-3", "jamba",
    "ministral-3", "mistral-small-3", "qwen-2.5-vl", "qwen-3-vl-moe", "deepseek-2-lite", "glm-4.7-flash", "olmo-3",
    "mistral-4", "falcon-mamba",
    "olmoe", "exaone-4", "hunyuan-moe", "ernie-4.5-moe", "cohere-2", "seed-oss", "phi-2", "stablelm-12b", "apertus",
    "arcee", "nemotron", "llama-4", "minicpm-3", "bitnet", "falcon-40b",
    "bert", "xlm-roberta-ranker", "embedding-gemma", "qwen-3-embedding", "modern-bert", "nomic-bert", "jina-3",
    "baichuan-7b", "rwkv-7", "jina-2",
)  # fmt: skip
NO_LOGITS = "gives embeddings or scores.*it does not say what comes next"
NO_SUCH_MODEL = "the installed transformers has no such model"
EMBED = (
    "bert", "xlm-roberta-ranker", "embedding-gemma", "qwen-3-embedding", "modern-bert", "nomic-bert", "jina-3", "jina-2",
)  # fmt: skip
OTHER_ROWS = "are not rows of the checkpoint"  # transposed experts, and the halves of a latent's matrix
REFUSED: dict[tuple[str, str], str] = {
    **{(name, cell): NO_LOGITS for name in EMBED for cell in ("gptq", "wire")},
    **{
        (name, cell): reason
        for name in ("baichuan-7b", "rwkv-7")
        for cell, reason in (
            ("gptq", NO_SUCH_MODEL), ("wire", NO_SUCH_MODEL), ("checkpoint", NO_SUCH_MODEL),
            ("validate", "transformers cannot read it"),
        )
    },
    ("jina-2", "checkpoint"): NO_SUCH_MODEL,
    **{(name, "validate"): NO_LOGITS for name in ("xlm-roberta-ranker", "embedding-gemma", "qwen-3-embedding")},
    **{(name, "wire"): OTHER_ROWS for name in ("gpt-oss", "deepseek-2-lite", "glm-4.7-flash", "mistral-4", "llama-4")},
    **{(name, "wire"): "not a linear layer's matrix" for name in ("mamba", "falcon-mamba", "jamba")},
    ("gemma-4-e2b", "wire"): "2 layers share keys and values of earlier ones",
    **{(name, "checkpoint"): "sees as well" for name in ("qwen-2.5-vl", "qwen-3-vl-moe")},
}  # fmt: skip
MODELS = (*HYBRIDS, *DECODERS, *EMBEDDERS, *RANKERS, *DEFINED)


ALWAYS, EVERY = ("dry-run", "q4km"), 3
# All refusals, and of every three families another third of the cells; tools/families_table.py runs all of them.
SAMPLE = tuple(
    (name, cell)
    for row, name in enumerate(MATRIX)
    for column, cell in enumerate(CELLS)
    if cell in ALWAYS or (row + column) % EVERY == 0 or (name, cell) in REFUSED
)


@pytest.fixture(scope="module")
def checkpoint(
    request: pytest.FixtureRequest, books: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TinyModel | DefinedModel, Path]]:
    tiny = next(each for each in MODELS if each.name == request.param)
    scratch = tmp_path_factory.mktemp(tiny.name)
    if isinstance(tiny, DefinedModel):
        tiny.write(scratch / "model", books)
    else:
        write_checkpoint(random_model(tiny), scratch / "model", books, fused_experts=tiny.fused_experts)
    yield tiny, scratch
    for file in scratch.glob("*.gguf"):
        file.unlink()


@pytest.mark.parametrize(("checkpoint", "cell"), SAMPLE, indirect=["checkpoint"])
def test_a_cell_works_or_says_why_not(cell: str, checkpoint: tuple[TinyModel | DefinedModel, Path]) -> None:
    tiny, scratch = checkpoint
    reason = run_cell(cell, scratch / "model", scratch)
    expected = REFUSED.get((tiny.name, cell), "")
    assert bool(reason) == bool(expected), reason
    assert re.search(expected, reason)


def test_every_family_stands_in_the_table_with_what_was_measured() -> None:
    """What it says of each is measured by `tools/families_table.py`, whose table docs/sources.md holds."""
    figures, document = read_figures(), (ROOT / "docs/sources.md").read_text(encoding="utf-8")
    for family in {each.name for each in families().values()}:
        assert figures[family]["models"], f"{family}: python tools/families_table.py --measure NAME"
        assert f"| `{family}` |" in document, "python tools/families_table.py --figure families; make figures"
        assert all(each["error"] <= each["tolerance"] for each in figures[family]["models"].values())


def test_the_cell_of_eyes_names_what_is_written_and_what_is_refused() -> None:
    measured = {"LlavaForConditionalGeneration": ("`pixtral`", "`mlp`")}
    assert eyes_cell(["LlamaForCausalLM"], measured) == "-"
    assert eyes_cell(["LlavaForConditionalGeneration"], measured) == "yes: `mlp`, `pixtral`"
    both = eyes_cell(["Llama4ForConditionalGeneration", "LlavaForConditionalGeneration"], measured)
    assert both == "yes: `mlp`, `pixtral`; no: unknown projector of 'Llama4ForConditionalGeneration'"
    assert eyes_cell(["Gemma3ForConditionalGeneration"], {}) == (
        "no: the projector of Gemma3ForConditionalGeneration was not measured"
    )


def test_every_projector_of_the_data_was_measured() -> None:
    measured = {name for row in all_figures()["projectors"].rows for name in row[1].split(", ")}
    assert set(projectors()) <= measured
