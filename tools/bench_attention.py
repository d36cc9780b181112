"""What a cache of k dimensions costs and keeps: bytes a token, divergence before and after training, memory.

    python tools/bench_attention.py NAME=MODEL CALIBRATION_TEXT UNSEEN_TEXT [--ranks 96@.001,64,32,9,2]
        [--rope before] [--joined layer] [--metric scores] [--steps 60] [--sequences 24] [--length 256] [--ctx 512]
        [--chunks 4] [--memory 64,9] [--context 512,2048,4096] [--figure rows,curve,memory]

Prints a row for each k, for keys and values alike: "k = 9 of 768 dimensions, 85 times smaller, 95 %" is a claim of
k = 9, and of k for 85 times smaller. Then what was held out of training said on the way. Then what caches hold after
`generate` at each length, 16 bits an element, and what that took. Bytes and memory are those of the tensors held;
energy is the mean over layers, with the mean vector in it (raw) and about the mean (centred), of keys before rope and
of values. Divergence is from the same model with whole keys and values, in float32, in the second halves of the chunks
that `bench_kv` judges.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from figure_file import run_with_figure
from judged_text import judged_text, kept_answers
from part_cost import counted

from edgepack.export.checkpoint import open_checkpoint
from edgepack.quant.attention.eigen import EigenAttention
from edgepack.quant.attention.judging import answers
from edgepack.quant.attention.training import TrainingSettings, distil, train_reconstruction
from edgepack.quant.calibration.text import text_sequences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from judged_text import JudgedText

    from edgepack.quant.attention.moments import Moments
    from edgepack.quant.attention.training import Trained

_LOOKS = 8


def sequences(folder: Path, text: Path, length: int, count: int) -> torch.Tensor:
    """Tokens [count, length], spread evenly over a text."""
    found = text_sequences(open_checkpoint(folder), text.read_text("utf-8"), length=length, sequences=count)
    return torch.from_numpy(found)


def energy(moments: Sequence[Moments], rank: int) -> tuple[float, float]:
    """Share that the first k directions hold, raw and centred; the mean over layers and groups."""
    raw, centred = [], []
    for each in moments:
        second = each.covariance + each.mean[..., :, None] * each.mean[..., None, :]
        for matrix, found in ((second, raw), (each.covariance, centred)):
            values = torch.linalg.eigvalsh(matrix).flip(-1)
            found.append(float((values[..., :rank].sum(-1) / values.sum(-1)).mean()))
    return float(np.mean(raw)), float(np.mean(centred))


def print_curves(curves: Sequence[tuple[str, Trained]]) -> None:
    """What the held-out sequences of each training said at each look; nothing where a run ended before."""
    steps = sorted({step for _told, trained in curves for step, _loss in trained.looks})
    print("\n| held-out KL after steps | " + " | ".join(map(str, steps)) + " |")
    print("|---" * (len(steps) + 1) + "|")
    for told, trained in curves:
        known = dict(trained.looks)
        print(f"| {told} | " + " | ".join(f"{known[step]:.4f}" if step in known else "" for step in steps) + " |")


class Bench:
    """One model with what is learnt from and judged on."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, (self.name, self.folder) = options, options.model
        self.model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        self.model.eval().requires_grad_(False)
        self.learnt = sequences(self.folder, options.calibration, options.length, options.sequences)
        self.unseen: JudgedText = judged_text(self.folder, options.unseen, options.ctx, options.chunks)
        self.original = answers(self.model)
        self.known = kept_answers(self.original, scratch)
        first = {"rope": options.rope, "metric": options.metric, "joined": options.joined}
        with (
            counted() as self.cost,
            EigenAttention.fit(self.model, self.learnt, key_rank=2, value_rank=2, **first) as whole,
        ):
            self.moments = whole.moments

    def eigen(self, rank: int) -> EigenAttention:
        """Principal components."""
        o = self.options
        return EigenAttention.from_moments(
            self.model, self.moments, key_rank=rank, value_rank=rank, rope=o.rope, metric=o.metric
        )

    def row(self, rank: int, rate: float) -> tuple[str, Trained]:
        """Print one k: fit, judge, train, judge; what the training is called and what it came to."""
        with counted() as all_of_it, self.eigen(rank) as eigen:
            student = answers(self.model, eigen.cache)
            before = self.unseen.judge(self.known, student)
            with counted() as training:
                train_reconstruction(eigen)
                settings = TrainingSettings(steps=self.options.steps, rate=rate, looks=_LOOKS)
                trained = distil(self.original, student, eigen.parameters(), self.learnt, settings)
            after = self.unseen.judge(self.known, student)
            held, of = eigen.bytes_per_token(), eigen.whole_bytes_per_token()
        shares = [energy([getattr(m, kind) for m in self.moments], rank) for kind in ("keys", "values")]
        cells = [
            self.name, f"{rank} of {self.moments[0].keys.width}", f"{held:,}", f"{of / held:.1f}×",
            " / ".join(f"{raw:.0%}" for raw, _ in shares), " / ".join(f"{centred:.0%}" for _, centred in shares),
            f"{before.kl:.4f}", f"{after.kl:.4f}", f"{before.top1:.1%}", f"{after.top1:.1%}", str(trained.steps),
            f"{training.seconds:.0f}", f"{all_of_it.seconds:.0f}", all_of_it.megabytes,
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
        return f"{self.name}, k = {rank}, rate {rate:g}", trained

    def held(self, rank: int | None, context: int, text: torch.Tensor) -> str:
        """What a cache holds after `generate` has filled it, and what that took."""
        prompt = text[:, : context - 8]
        eigen = None if rank is None else self.eigen(rank)
        cache: Any = transformers.DynamicCache() if eigen is None else eigen.cache(torch.bfloat16)
        with counted() as cost, torch.inference_mode():
            self.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, min_new_tokens=9,
                do_sample=False, past_key_values=cache, pad_token_id=0,
            )  # fmt: skip
        if eigen is not None:
            eigen.release()
            size = cache.held_bytes
        else:
            size = sum((layer.keys.numel() + layer.values.numel()) * 2 for layer in cache.layers)
        return f"{size / 1e6:.2f} | {cost.seconds:.0f} | {cost.megabytes}"

    def memory(self, ranks: Sequence[int], contexts: Sequence[int]) -> None:
        """Print what caches hold at each length, in MB."""
        text = sequences(self.folder, self.options.calibration, max(contexts) - 8, 1)
        told = (f"{n:,} tokens, MB held | CPU s | MB of the process" for n in contexts)
        print("\n| model | cache | " + " | ".join(told) + " |")
        print("|---" * (3 * len(contexts) + 2) + "|")
        for rank in (None, *ranks):
            cells = [self.held(rank, context, text) for context in contexts]
            what = "whole" if rank is None else f"k = {rank}"
            print(f"| {self.name} | {what} | {' | '.join(cells)} |", flush=True)


def named_model(text: str) -> tuple[str, Path]:
    """Of `NAME=FOLDER`."""
    name, _, folder = text.partition("=")
    return name, Path(folder)


def numbers(text: str) -> list[int]:
    """Of `96,64`."""
    return [int(each) for each in text.split(",") if each]


def learnt_ranks(text: str) -> list[tuple[int, float]]:
    """Of `96@.001,64`: k and the rate that its maps learn with."""
    pairs = [each.partition("@") for each in text.split(",") if each]
    return [(int(rank), float(rate or TrainingSettings.rate)) for rank, _, rate in pairs]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=named_model, metavar="NAME=FOLDER")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("unseen", type=Path)
    parser.add_argument(
        "--ranks", type=learnt_ranks, default=learnt_ranks("96@.001,64@.001,32,9,2"),
        help="k for keys and for values, and the rate of training: .01 by default",
    )  # fmt: skip
    parser.add_argument("--rope", default="before", choices=["before", "after", "pairs"])
    parser.add_argument("--joined", default="layer", choices=["layer", "head"])
    parser.add_argument("--metric", default="scores", choices=["scores", "plain"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sequences", type=int, default=24, help="to calibrate and train on")
    parser.add_argument("--length", type=int, default=256, help="of those")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a chunk that is judged")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--memory", type=numbers, default=[64], metavar="RANKS", help="whose memory is measured")
    parser.add_argument("--context", type=numbers, default=[512, 2048, 4096], help="at these lengths; empty for none")
    return parser.parse_args()


def main() -> None:
    """Fit, train, judge, generate, print."""
    options = parsed()
    with counted() as cost, tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        print(
            "| model | k | bytes a token | smaller | energy of K / V, raw | centred | KL before training | after | "
            "same token before | after | steps | CPU s of training | of all | MB |"
        )
        print("|---" * 14 + "|")
        curves = [bench.row(rank, rate) for rank, rate in options.ranks]
        if curves:
            print_curves(curves)
        if options.context:
            bench.memory(options.memory, options.context)
    print(f"\ncalibration: {bench.cost.seconds:.0f} processor seconds; {cost.seconds:.0f} in all", flush=True)


if __name__ == "__main__":
    run_with_figure(main)
