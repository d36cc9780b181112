"""Plans the export of GLM-4.7 (358 B parameters) from a source that takes no disk, and streams a part of it.

    python tools/plan_giant.py [TARGET ...]      by default q8 q5km q4km q2k
    python tools/plan_giant.py q4km --nodes 1,4,16,64     and what it takes on clusters of so many nodes
    python tools/plan_giant.py --work gptq,refine,wire --nodes 1,4,16,64     the same where a text goes through it

Its names and shapes are those of the published checkpoint, one tensor for each matrix of each expert. It prints
the exact size of each file, how long planning took and the peak memory; then quantises the first chunks of an
expert stack, to show that nothing but the chunks is held.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

from figure_file import run_with_figure
from giant_cluster import HEADINGS, Machines, cluster_rows
from giant_rates import measured
from giant_walks import WORKS, walk_rows
from synthetic_checkpoint import BUNDLED_TOKENIZER, SyntheticTensors, bf16_specs

from edgepack.export.chunks import chunks
from edgepack.export.mapped_model import map_checkpoint
from edgepack.export.plan import plan_export
from edgepack.model import Checkpoint
from edgepack.quant.types.targets import find_target
from edgepack.quantities import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgepack.export.mapped import MappedModel

GLM_4_7: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "first_k_dense_replace": 3,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "max_position_embeddings": 202752,
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 92,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "routed_scaling_factor": 2.5,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_qk_norm": True,
    "vocab_size": 151552,
}

Shapes = dict[str, tuple[int, ...]]


def checkpoint_shapes(config: dict[str, Any]) -> Shapes:
    """Name → shape of every tensor of a GLM-4.5 to 4.7 checkpoint, as published."""
    d, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, d), "lm_head.weight": (vocabulary, d)}
    shapes["model.norm.weight"] = (d,)
    layers = config["num_hidden_layers"]
    for layer in range(layers + config["num_nextn_predict_layers"]):
        found = dict(_attention(config))
        found |= dict(_experts(config) if layer >= config["first_k_dense_replace"] else _gated("mlp.", d, config))
        if layer >= layers:
            found |= dict(_prediction(d, vocabulary))
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in found.items()}
    return shapes


def _attention(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, head = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    for part, rows in (("q", q), ("k", kv), ("v", kv)):
        yield f"self_attn.{part}_proj.weight", (rows, d)
        yield f"self_attn.{part}_proj.bias", (rows,)
    yield "self_attn.o_proj.weight", (d, q)
    yield from ((f"self_attn.{part}_norm.weight", (head,)) for part in "qk")
    yield from ((f"{norm}_layernorm.weight", (d,)) for norm in ("input", "post_attention"))


def _gated(
    prefix: str, d: int, config: dict[str, Any], width: int | None = None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = width or config["intermediate_size"]
    yield from ((f"{prefix}{part}_proj.weight", (width, d)) for part in ("gate", "up"))
    yield f"{prefix}down_proj.weight", (d, width)


def _experts(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, width, number = config["hidden_size"], config["moe_intermediate_size"], config["n_routed_experts"]
    yield "mlp.gate.weight", (number, d)
    yield "mlp.gate.e_score_correction_bias", (number,)
    for expert in range(number):
        yield from _gated(f"mlp.experts.{expert}.", d, config, width)
    yield from _gated("mlp.shared_experts.", d, config, width * config["n_shared_experts"])


def _prediction(d: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "eh_proj.weight", (d, 2 * d)
    yield from ((f"{name}.weight", (d,)) for name in ("enorm", "hnorm", "shared_head.norm"))
    yield from ((f"{name}.weight", (vocabulary, d)) for name in ("embed_tokens", "shared_head.head"))


def mapped_giant() -> MappedModel:
    """GLM-4.7 under GGUF names, with the bundled vocabulary padded to its size."""
    tensors = SyntheticTensors(bf16_specs(checkpoint_shapes(GLM_4_7)))
    return map_checkpoint(Checkpoint(BUNDLED_TOKENIZER, GLM_4_7, tensors))


def _peak_megabytes() -> float:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _clusters(given: argparse.Namespace) -> list[Machines]:
    """Those that are planned for."""
    counts = [int(count) for count in (given.nodes or "1").split(",")]
    link, storage = parse_size(given.link), parse_size(given.storage)
    return [Machines(count, given.processors, link, storage) for count in counts]


def _works(parser: argparse.ArgumentParser, text: str) -> list[str]:
    named = text.split(",")
    if unknown := [each for each in named if each not in WORKS]:
        parser.error(f"--work: expected {', '.join(WORKS)}, got '{unknown[0]}'")
    return named


def _print_table(found: list[list[str]]) -> None:
    for row in [HEADINGS, ["---"] * len(HEADINGS), *found] if found else ():
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Print the plans and stream a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=["q8", "q5km", "q4km", "q2k"])
    parser.add_argument("--nodes", metavar="N,N", help="clusters to be planned for")
    parser.add_argument("--processors", type=int, default=64, help="of a node")
    parser.add_argument("--link", default="1.25GB", help="of a node, a second")
    parser.add_argument("--storage", default="5GB", help="of the shared folder, a second")
    parser.add_argument("--memory", default="1.5TB", help="of a node, which --work keeps to")
    parser.add_argument("--work", metavar="W,W", help=f"plan these instead: {', '.join(WORKS)}")
    given = parser.parse_args()
    if given.work is not None:
        _print_table(
            walk_rows(_works(parser, given.work), GLM_4_7, measured(), _clusters(given), parse_size(given.memory))
        )
        return
    targets = [find_target(text) for text in given.targets]
    started = time.monotonic()
    model = mapped_giant()
    parameters = sum(prod(rows.shape) for rows in model.tensors.values())
    print(
        f"GLM-4.7: {parameters:,} parameters in {len(model.tensors)} tensors,"
        f" mapped in {time.monotonic() - started:.1f} s"
    )
    found: list[list[str]] = []
    for target in targets:
        started = time.monotonic()
        plan = plan_export(model, target)
        size = plan.total_bytes
        print(
            f"{target.label:<8} {size:>17,} bytes ({format_size(size)}), planned in {time.monotonic() - started:.1f} s"
        )
        if given.nodes is not None:
            found += cluster_rows(plan, _clusters(given))
    _print_table(found)
    stack = next(tensor for tensor in plan.tensors if tensor.info.name == "blk.46.ffn_down_exps.weight")
    blocks = [chunk.encode() for chunk in islice(chunks(stack), 64)]
    print(
        f"streamed {sum(each.nbytes for each in blocks):,} of {stack.info.nbytes:,} bytes of {stack.info.name}"
        f" as {stack.info.type.name}; peak memory {_peak_megabytes():.0f} MB"
    )


if __name__ == "__main__":
    run_with_figure(main)
