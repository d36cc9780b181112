"""What a cache of k dimensions costs and keeps: bytes a token, divergence before and after training, memory.

    python tools/bench_attention.py MODEL CALIBRATION_TEXT UNSEEN_TEXT… [--ranks 96,64,32] [--rope before]
        [--joined layer] [--metric scores] [--steps 60] [--sequences 24] [--length 256] [--evaluate 4]
        [--context 512,2048,4096] [--no-claim]

Prints a row for each k, for keys and values alike, and two for the claim of "k = 9 of 768 dimensions, 85 times smaller,
95 %": k = 9, and k for 85 times smaller. Then what caches hold after `generate` at each length, 16 bits an element, and
processor seconds. Bytes and memory are those of the tensors held; energy is the mean over layers, with the mean
vector in it (raw) and about the mean (centred), of keys before rope and of values.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from edgepack.export.checkpoint import open_checkpoint
from edgepack.quant.attention.eigen import EigenAttention
from edgepack.quant.attention.judging import answers, judge
from edgepack.quant.attention.training import TrainingSettings, distil, train_reconstruction
from edgepack.quant.calibration.text import text_sequences

if TYPE_CHECKING:
    from edgepack.quant.attention.moments import Moments

_CLAIMED_RANK, _CLAIMED_TIMES = 9, 768 / 9


def sequences(folder: Path, text: Path, length: int, count: int) -> torch.Tensor:
    """Tokens [count, length], spread evenly over a text."""
    found = text_sequences(open_checkpoint(folder), text.read_text("utf-8"), length=length, sequences=count)
    return torch.from_numpy(found)


def energy(moments: list[Moments], rank: int) -> tuple[float, float]:
    """Share that the first k directions hold, raw and centred; the mean over layers and groups."""
    raw, centred = [], []
    for each in moments:
        second = each.covariance + each.mean[..., :, None] * each.mean[..., None, :]
        for matrix, found in ((second, raw), (each.covariance, centred)):
            values = torch.linalg.eigvalsh(matrix).flip(-1)
            found.append(float((values[..., :rank].sum(-1) / values.sum(-1)).mean()))
    return float(np.mean(raw)), float(np.mean(centred))


def row(model: Any, whole: EigenAttention, rank: int, learnt: torch.Tensor, unseen: list[torch.Tensor], o: Any) -> str:
    """One k: fit, judge, train, judge."""
    began = time.process_time()
    settings = {"key_rank": rank, "value_rank": rank, "rope": o.rope, "metric": o.metric}
    with EigenAttention.from_moments(model, whole.moments, **settings) as eigen:
        student = answers(model, eigen.cache)
        before = [judge(answers(model), student, tokens) for tokens in unseen]
        trained = time.process_time()
        train_reconstruction(eigen)
        distil(answers(model), student, eigen.parameters(), learnt, TrainingSettings(steps=o.steps))
        trained = time.process_time() - trained
        after = [judge(answers(model), student, tokens) for tokens in unseen]
        held, of = eigen.bytes_per_token(), eigen.whole_bytes_per_token()
        shares = [energy([getattr(m, kind) for m in whole.moments], rank) for kind in ("keys", "values")]
    cells = [
        f"{rank} of {whole.moments[0].keys.width}", f"{held:,}", f"{of / held:.1f}×",
        " / ".join(f"{raw:.0%}" for raw, _ in shares), " / ".join(f"{centred:.0%}" for _, centred in shares),
        *(f"{a.kl:.3f} → {b.kl:.3f}" for a, b in zip(before, after, strict=True)),
        *(f"{a.top1:.1%} → {b.top1:.1%}" for a, b in zip(before, after, strict=True)),
        f"{trained:.0f}", f"{time.process_time() - began:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def memory(model: Any, whole: EigenAttention, ranks: list[int], contexts: list[int], o: Any) -> None:
    """What caches hold after `generate` has filled them to each length, in MB."""
    text = sequences(o.model, o.calibration, max(contexts) - 8, 1)
    print("\n| cache | " + " | ".join(f"{n:,} tokens, MB (CPU s)" for n in contexts) + " |")
    print("|---" * (len(contexts) + 1) + "|")
    for rank in (None, *ranks):
        cells = []
        for context in contexts:
            began = time.process_time()
            prompt = text[:, : context - 8]
            cache: Any = transformers.DynamicCache()
            eigen = None
            if rank is not None:
                settings = {"key_rank": rank, "value_rank": rank, "rope": o.rope, "metric": o.metric}
                eigen = EigenAttention.from_moments(model, whole.moments, **settings)
                cache = eigen.cache(torch.bfloat16)
            with torch.inference_mode():
                model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, min_new_tokens=9,
                    do_sample=False, past_key_values=cache, pad_token_id=0,
                )  # fmt: skip
            held = (
                cache.held_bytes
                if eigen
                else sum((layer.keys.numel() + layer.values.numel()) * 2 for layer in cache.layers)
            )
            if eigen:
                eigen.release()
            cells.append(f"{held / 1e6:.2f} ({time.process_time() - began:.0f})")
        print(f"| {'whole' if rank is None else f'k = {rank}'} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Fit, train, judge, generate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("unseen", type=Path, nargs="+")
    parser.add_argument("--ranks", default="96,64,32", help="k for keys and for values")
    parser.add_argument("--rope", default="before", choices=["before", "after", "pairs"])
    parser.add_argument("--joined", default="layer", choices=["layer", "head"])
    parser.add_argument("--metric", default="scores", choices=["scores", "plain"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sequences", type=int, default=24, help="to calibrate and train on")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--evaluate", type=int, default=4, help="sequences of each unseen text")
    parser.add_argument(
        "--context", default="512,2048,4096", help="lengths at which memory is measured; empty for none"
    )
    parser.add_argument("--no-claim", action="store_true")
    options = parser.parse_args()
    began = time.process_time()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model.eval().requires_grad_(False)
    learnt = sequences(options.model, options.calibration, options.length, options.sequences)
    unseen = [sequences(options.model, text, options.length, options.evaluate) for text in options.unseen]
    ranks = [int(each) for each in options.ranks.split(",") if each]
    first = {"key_rank": 2, "value_rank": 2, "rope": options.rope, "metric": options.metric, "joined": options.joined}
    with EigenAttention.fit(model, learnt, **first) as whole:
        width = whole.moments[0].keys.width
        claimed = [] if options.no_claim else [_CLAIMED_RANK, max(1, round(width / _CLAIMED_TIMES))]
        names = [text.stem for text in options.unseen]
        heads = ["k", "bytes a token", "smaller", "energy of K / V, raw", "centred"]
        heads += [f"KL {name}, before → after" for name in names] + [f"top-1 {name}" for name in names]
        print("| " + " | ".join([*heads, "CPU s of training", "of all"]) + " |")
        print("|---" * (7 + 2 * len(names)) + "|")
        for rank in (*ranks, *claimed):
            print(row(model, whole, rank, learnt, unseen, options), flush=True)
        contexts = [int(each) for each in options.context.split(",") if each]
        if contexts:
            memory(model, whole, ranks, contexts, options)
    print(f"\n{time.process_time() - began:.0f} processor seconds in all", flush=True)


if __name__ == "__main__":
    from figure_file import run_with_figure

    run_with_figure(main)
