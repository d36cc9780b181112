"""What attention through a latent gives on stock llama.cpp: bytes a token and divergence, before and after training.

    python tools/bench_latent_attention.py MODEL CALIBRATION_TEXT UNSEEN_TEXT [--shapes 192x1,128x1,96x2] [--steps 60]
        [--rate 0.001] [--sequences 32] [--length 128] [--evaluate 4]

MODEL is a Llama's folder. A shape is the latent's rank and how many frequencies of rope become one; `whole` behind it
(128xwhole) keeps every head's rope, which transformers alone runs. Every shape is written as a checkpoint and exported
as `gguf-f32`; bytes a token are what llama.cpp says that its cache has, at 16 bits an element, divergence is that of
llama.cpp's answers from transformers' of the original. The first rows are the original, exported likewise, with some of
llama.cpp's own types of cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from bench_attention import sequences
from bench_importance import result_of
from fit_truth import reported

from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.quant.attention.judging import answers, judge
from edgepack.quant.attention.latent import LatentSettings
from edgepack.quant.attention.latent_checkpoint import write_latent_checkpoint
from edgepack.quant.attention.training import TrainingSettings

if TYPE_CHECKING:
    from edgepack.quant.attention.judging import Answer


def settings_of(shape: str) -> LatentSettings:
    """`128x1` or `128xwhole`."""
    rank, _, fold = shape.partition("x")
    return LatentSettings(int(rank), rope="whole") if fold == "whole" else LatentSettings(int(rank), int(fold or 1))


def in_llama(folder: Path, out: Path, original: Answer, unseen: torch.Tensor, kv_type: str = "") -> tuple[int, str]:
    """Bytes of a token in llama.cpp's cache, as its log has them, and divergence.

    Args:
        folder: a checkpoint.
        out: the GGUF that is made of it where there is none.
        original: answers that are compared with.
        unseen: tokens [sequences, length].
        kv_type: of the cache; by default bytes are those of f16, and divergence is that of f32.
    """
    if not out.exists():
        result_of("export", folder, "--target", "gguf-f32", "-o", out)
    cells, counted = 4096, kv_type or "f16"
    small = RuntimeOptions(n_ctx=cells, n_batch=32, n_ubatch=32, threads=1, kv_type_k=counted, kv_type_v=counted)
    with LoadedModel(out, small) as model:
        held = round(reported(model.load_log, "llama_kv_cache: size") / cells)
    options = RuntimeOptions(
        n_ctx=unseen.shape[1], threads=1, kv_type_k=kv_type or "f32", kv_type_v=kv_type or "f32",
        flash_attention="on" if kv_type else "off",
    )  # fmt: skip
    with LoadedModel(out, options) as model:
        found = judge(original, lambda tokens: torch.from_numpy(model.logits(tokens.numpy())), unseen)
    return held, f"{found.kl:.4f} / {found.top1:.1%}"


def main() -> None:
    """Rewrite, train, export, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("unseen", type=Path)
    parser.add_argument("--shapes", default="192x1,128x1,96x2")
    parser.add_argument("--steps", type=int, default=60, help="of training; 0 for none")
    parser.add_argument("--rate", type=float, default=1e-3, help="of training")
    parser.add_argument("--sequences", type=int, default=32, help="to calibrate on and to learn from")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--evaluate", type=int, default=4)
    options = parser.parse_args()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    original = answers(model.eval().requires_grad_(False))
    tokens = sequences(options.model, options.calibration, options.length, options.sequences)
    unseen = sequences(options.model, options.unseen, options.length, options.evaluate)
    print("| attention | bytes a token | of the source's | KL / top-1 | after training | CPU s of training |")
    print("|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        whole, exact = in_llama(options.model, Path(scratch) / "source.gguf", original, unseen)
        print(f"| as it was | {whole:,} | 100% | {exact} | | |", flush=True)
        for kv_type in ("q8_0", "q4_0"):
            held, cost = in_llama(options.model, Path(scratch) / "source.gguf", original, unseen, kv_type)
            print(f"| as it was, cache {kv_type} | {held:,} | {held / whole:.0%} | {cost} | | |", flush=True)
        for shape in options.shapes.split(","):
            settings = settings_of(shape)
            folder = Path(scratch) / shape
            plain = write_latent_checkpoint(options.model, folder, tokens, settings)
            if settings.rope == "whole":
                made = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
                found = judge(original, answers(made), unseen)
                held, before = plain.bytes_per_token, f"{found.kl:.4f} / {found.top1:.1%} (transformers)"
            else:
                held, before = in_llama(folder, Path(scratch) / f"{shape}.gguf", original, unseen)
            after, seconds = "", time.process_time()
            if options.steps and settings.rope != "whole":
                training = TrainingSettings(steps=options.steps, rate=options.rate, patience=8)
                learnt = Path(scratch) / f"{shape}-trained"
                write_latent_checkpoint(options.model, learnt, tokens, settings, training)
                seconds = time.process_time() - seconds
                _, after = in_llama(learnt, Path(scratch) / f"{shape}-trained.gguf", original, unseen)
            cost = f"{seconds:.0f}" if after else ""
            print(f"| {shape} | {held:,} | {held / whole:.0%} | {before} | {after} | {cost} |", flush=True)


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
