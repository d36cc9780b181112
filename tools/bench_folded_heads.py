"""What narrow heads give a model with learnt positions on stock llama.cpp: bytes a token and divergence.

    python tools/bench_folded_heads.py TOKENIZER_FOLDER TEXT UNSEEN_TEXT [--steps 150] [--sequences 2400] [--width 128]
        [--heads 4] [--layers 2] [--folds 4x32,4x16,2x32,2x16,1x32,4x8] [--ctx 128] [--chunks 8]

No published GPT-2 is at hand where this runs, so a small one is trained first, for `steps` steps, on pieces of TEXT
that are said twice: so small a model of plain text hardly attends, and any cache would do. A fold is groups of heads ×
k: keys and values of all heads in a group share k dimensions. Every fold is written as a GGUF and run
by llama.cpp; divergence is from the same model unfolded, run by llama.cpp too, in the second halves of chunks. The
first rows are the model with some of llama.cpp's own types of cache.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from bench_attention import sequences
from bench_importance import result_of
from figure_file import run_with_figure
from judged_text import JudgedText, judged_text
from part_cost import PartCost, counted

from edgepack.edge.fit.memory import MemoryRequest, kv_layer_bytes
from edgepack.edge.fit.shape import read_shape
from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.export.checkpoint import open_checkpoint
from edgepack.gguf.reader import read_header
from edgepack.quant.attention.folded import fold_heads, write_folded

if TYPE_CHECKING:
    from edgepack.quant.attention.judging import Answer, Judgement

_CELLS = 256


def trained(folder: Path, tokens: torch.Tensor, options: argparse.Namespace) -> transformers.GPT2LMHeadModel:
    """A small GPT-2 that has read some text."""
    torch.manual_seed(0)
    source = open_checkpoint(folder).config
    config = transformers.GPT2Config(
        n_embd=options.width, n_layer=options.layers, n_head=options.heads, n_positions=_CELLS,
        vocab_size=source["vocab_size"], bos_token_id=source["bos_token_id"], eos_token_id=source["eos_token_id"],
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, initializer_range=options.width**-0.5,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=options.steps)
    for step in range(options.steps):
        batch = tokens[torch.arange(8 * step, 8 * step + 8) % len(tokens)]
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def said_twice(tokens: torch.Tensor) -> torch.Tensor:
    """[sequences, length] → [sequences, 2 · length]."""
    return torch.cat([tokens, tokens], dim=1)


def answers_of(path: Path, kv_type: str = "f32") -> tuple[LoadedModel, Answer, int]:
    """llama.cpp with a GGUF open, its answers, and bytes a token of its cache; those of f16 where the type is f32.

    Its log has two places behind the point of a MiB: too few here. `edgepack fit` counts as it does (tests/edge).
    """
    shape = read_shape(read_header(path))
    counted_as = "f16" if kv_type == "f32" else kv_type
    request = MemoryRequest(_CELLS, kv_type_k=counted_as, kv_type_v=counted_as)
    held = sum(kv_layer_bytes(shape, layer, request) for layer in shape.layers) // _CELLS
    options = RuntimeOptions(
        n_ctx=_CELLS, threads=1, kv_type_k=kv_type, kv_type_v=kv_type,
        flash_attention="off" if kv_type == "f32" else "on",
    )  # fmt: skip
    model = LoadedModel(path, options)
    return model, lambda tokens: torch.from_numpy(model.logits(tokens.numpy())), held


def print_row(what: str, held: int, whole: int, found: Judgement | None = None, cost: PartCost | None = None) -> None:
    """One line."""
    cells = ["a small GPT-2", what, f"{held:,}", f"{whole / held:.1f}×"]
    cells += ["", ""] if found is None else [f"{max(found.kl, 0.0):.4f}", f"{found.top1:.1%}"]
    cells += ["", ""] if cost is None else [f"{cost.seconds:.1f}", cost.megabytes]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Train, export, fold, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("unseen", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--sequences", type=int, default=2400, help="of 64 tokens, eight a step")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=128, help="tokens of a chunk that is judged")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--folds", default="4x32,4x16,2x32,2x16,1x32,4x8", help="groups x k")
    options = parser.parse_args()
    tokens = said_twice(sequences(options.tokenizer, options.text, 64, options.sequences))
    unseen = judged_text(options.tokenizer, options.unseen, options.ctx // 2, options.chunks)
    unseen = JudgedText(said_twice(unseen.tokens), slice(options.ctx // 2, options.ctx - 1))
    model = trained(options.tokenizer, tokens, options)
    with torch.inference_mode():
        loss = float(model(unseen.tokens, labels=unseen.tokens).loss)
    print(f"{options.steps} steps, {loss:.2f} nats a token on unseen text\n")
    print("| model | groups × k | bytes a token | smaller | KL | same token | CPU s of folding | MB |")
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        folder, source = Path(scratch) / "gpt2", Path(scratch) / "source.gguf"
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((options.tokenizer / name).read_bytes())
        result_of("export", folder, "--target", "gguf-f32", "-o", source)
        first, original, whole = answers_of(source)
        print_row("as it was", whole, whole)
        for kv_type in ("q8_0", "q4_0"):
            other, answer, held = answers_of(source, kv_type)
            print_row(f"as it was, cache {kv_type}", held, whole, unseen.judge(original, answer))
            other.close()
        for fold in options.folds.split(","):
            groups, rank = map(int, fold.split("x"))
            with counted() as cost:
                folded = fold_heads(model, tokens[:32], groups=groups, rank=rank)
            write_folded(source, folded, Path(scratch) / f"{fold}.gguf")
            other, answer, held = answers_of(Path(scratch) / f"{fold}.gguf")
            print_row(f"{groups} × {rank}", held, whole, unseen.judge(original, answer), cost)
            other.close()
        first.close()


if __name__ == "__main__":
    run_with_figure(main)
