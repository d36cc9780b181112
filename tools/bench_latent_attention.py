"""What attention through a latent gives on stock llama.cpp: bytes a token and divergence, before and after training.

    python tools/bench_latent_attention.py NAME=MODEL CALIBRATION_TEXT UNSEEN_TEXT [--shapes 192x1,128x1,96x2]
        [--train 128x1] [--steps 60] [--rate 0.001] [--sequences 32] [--length 128] [--ctx 512] [--chunks 4]
        [--figure rows,curve]

MODEL is a Llama's folder. A shape is the latent's rank and how many frequencies of rope become one; `whole` behind it
(128xwhole) keeps every head's rope, which transformers alone runs. Every shape is written as a checkpoint and exported
as `gguf-f32`; bytes a token are what llama.cpp says that its cache has, at 16 bits an element, divergence is that of
llama.cpp's answers from transformers' of the original, in the second halves of the chunks that `bench_kv` judges. The
first rows are the original, exported likewise, with some of llama.cpp's own types of cache.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from bench_attention import named_model, print_curves, sequences
from bench_importance import result_of
from figure_file import run_with_figure
from fit_truth import reported
from judged_text import judged_text, kept_answers
from part_cost import PartCost, counted

from edgepack.edge.llama.options import RuntimeOptions
from edgepack.edge.llama.runtime import LoadedModel
from edgepack.quant.attention.judging import answers
from edgepack.quant.attention.latent import LatentSettings
from edgepack.quant.attention.latent_checkpoint import LatentCheckpoint, write_latent_checkpoint
from edgepack.quant.attention.training import TrainingSettings

if TYPE_CHECKING:
    from edgepack.quant.attention.judging import Judgement
    from edgepack.quant.attention.training import Trained

_CELLS = 16384  # of the cache whose bytes are read off llama.cpp's log, which has them in hundredths of a MiB


def settings_of(shape: str) -> LatentSettings:
    """`128x1` or `128xwhole`."""
    rank, _, fold = shape.partition("x")
    return LatentSettings(int(rank), rope="whole") if fold == "whole" else LatentSettings(int(rank), int(fold or 1))


def told(found: Judgement | None) -> str:
    """Two cells."""
    return " | " if found is None else f"{max(found.kl, 0.0):.4f} | {found.top1:.1%}"


class Bench:
    """One model, what is learnt from and judged on, and where files lie meanwhile."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch, (self.name, self.folder) = options, scratch, options.model
        model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        self.original = kept_answers(answers(model.eval().requires_grad_(False)), scratch)
        self.tokens = sequences(self.folder, options.calibration, options.length, options.sequences)
        self.unseen = judged_text(self.folder, options.unseen, options.ctx, options.chunks)
        self.whole = 0

    def in_llama(self, folder: Path, kv_type: str = "") -> tuple[int, Judgement]:
        """Bytes of a token in llama.cpp's cache, as its log has them, and divergence.

        Args:
            folder: a checkpoint, exported where it is not yet.
            kv_type: of the cache; by default bytes are those of f16, and divergence is that of f32.
        """
        path = self.scratch / f"{folder.name}.gguf"
        if not path.exists():
            result_of("export", folder, "--target", "gguf-f32", "-o", path)
        counted_as = kv_type or "f16"
        small = RuntimeOptions(
            n_ctx=_CELLS, n_batch=32, n_ubatch=32, threads=1, kv_type_k=counted_as, kv_type_v=counted_as
        )
        with LoadedModel(path, small) as model:
            held = round(reported(model.load_log, "llama_kv_cache: size") / _CELLS)
        options = RuntimeOptions(
            n_ctx=self.options.ctx, threads=1, kv_type_k=kv_type or "f32", kv_type_v=kv_type or "f32",
            flash_attention="on" if kv_type else "off",
        )  # fmt: skip
        with LoadedModel(path, options) as model:
            found = self.unseen.judge(self.original, lambda tokens: torch.from_numpy(model.logits(tokens.numpy())))
        return held, found

    def in_transformers(self, folder: Path) -> Judgement:
        """Divergence of what llama.cpp has no graph for."""
        made = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return self.unseen.judge(self.original, answers(made))

    def source(self) -> None:
        """Print the original's rows."""
        for kv_type in ("", "q8_0", "q4_0"):
            held, found = self.in_llama(self.folder, kv_type)
            self.whole = self.whole or held
            self._print(f"as it was{f', cache {kv_type}' if kv_type else ''}", held, found)

    def shape(self, shape: str) -> Trained | None:
        """Print a shape's row; what training came to."""
        settings, o = settings_of(shape), self.options
        with counted() as cost:
            plain = write_latent_checkpoint(self.folder, self.scratch / shape, self.tokens, settings)
        if settings.rope == "whole":
            self._print(f"{shape} (transformers)", plain.bytes_per_token, self.in_transformers(plain.folder), cost)
            return None
        held, before = self.in_llama(plain.folder)
        if not o.steps or (o.train and shape not in o.train):
            self._print(shape, held, before, cost)
            return None
        learnt, more = self._trained(shape, settings)
        self._print(shape, held, before, cost, (self.in_llama(learnt.folder)[1], learnt.trained, more))
        return learnt.trained

    def _trained(self, shape: str, settings: LatentSettings) -> tuple[LatentCheckpoint, PartCost]:
        training = TrainingSettings(steps=self.options.steps, rate=self.options.rate, patience=8)
        with counted() as cost:
            found = write_latent_checkpoint(
                self.folder, self.scratch / f"{shape}-trained", self.tokens, settings, training
            )
        return found, cost

    def _print(
        self, what: str, held: int, before: Judgement, cost: PartCost | None = None,
        learnt: tuple[Judgement, Trained | None, PartCost] | None = None,
    ) -> None:  # fmt: skip
        cells = [self.name, what, f"{held:,}", f"{held / self.whole:.0%}", told(before)]
        after, trained, more = learnt or (None, None, None)
        cells += [told(after), "" if trained is None else str(trained.steps)]
        cells += ["" if cost is None else f"{cost.seconds:.0f} | {cost.megabytes}"] if cost else [" | "]
        cells += ["" if more is None or cost is None else f"{more.seconds - cost.seconds:.0f}"]
        cells += ["" if more is None else more.megabytes]
        print(f"| {' | '.join(cells)} |", flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=named_model, metavar="NAME=FOLDER")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("unseen", type=Path)
    parser.add_argument("--shapes", default="192x1,128x1,96x2")
    parser.add_argument("--train", default="", help="which of the shapes are trained; all by default")
    parser.add_argument("--steps", type=int, default=60, help="of training; 0 for none")
    parser.add_argument("--rate", type=float, default=1e-3, help="of training")
    parser.add_argument("--sequences", type=int, default=32, help="to calibrate on and to learn from")
    parser.add_argument("--length", type=int, default=128, help="of those")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a chunk that is judged")
    parser.add_argument("--chunks", type=int, default=4)
    options = parser.parse_args()
    options.shapes, options.train = options.shapes.split(","), [each for each in options.train.split(",") if each]
    return options


def main() -> None:
    """Rewrite, train, export, judge, print."""
    options = parsed()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        print(
            "| model | attention | bytes a token | of the source's | KL | same token | KL after training | same token "
            "| steps | CPU s of rewriting | MB | CPU s of training | MB |"
        )
        print("|---" * 13 + "|")
        bench.source()
        curves = [(f"{bench.name}, {shape}", found) for shape in options.shapes if (found := bench.shape(shape))]
        if curves:
            print_curves(curves)


if __name__ == "__main__":
    run_with_figure(main)
