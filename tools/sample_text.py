"""Text that a model writes itself, sampled as llama.cpp does by default; the demo's text is made by this.

    python tools/sample_text.py tests/data/books-llama-6m tests/data/own-words.txt

Temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, seed 0: what people who run the model will read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers

_TOP_K, _TOP_P, _MIN_P, _TEMPERATURE = 40, 0.95, 0.05, 0.8


def draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token a row: logits [rows, vocabulary] → ids [rows, 1]."""
    top, ids = logits.topk(_TOP_K)
    shares = top.softmax(-1)
    kept = (shares.cumsum(-1) - shares < _TOP_P) & (shares >= _MIN_P * shares[:, :1])
    choice = torch.multinomial((top.masked_fill(~kept, -torch.inf) / _TEMPERATURE).softmax(-1), 1, generator=generator)
    return ids.gather(1, choice)


@torch.inference_mode()
def sample(model: Any, first: int, sequences: int, length: int) -> list[list[int]]:
    """`sequences` rows of `length` - 1 ids, each begun with `first`, which is left out."""
    generator = torch.Generator().manual_seed(0)
    ids, cache, written = torch.full((sequences, 1), first), None, []
    for _ in range(length - 1):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        ids = draw(output.logits[:, -1].float(), generator)
        written.append(ids)
    rows: list[list[int]] = torch.cat(written, 1).tolist()
    return rows


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sequences", type=int, default=160)
    parser.add_argument("--length", type=int, default=160)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one order of additions, so the same text everywhere
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    rows = sample(model, tokenizer.bos_token_id, arguments.sequences, arguments.length)
    arguments.output.write_text("\n\n".join(tokenizer.decode(row) for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
