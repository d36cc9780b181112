"""Options that several commands share: how a model is opened, how tokens are chosen. Names are llama.cpp's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import note, terminal_progress
from edgepack.cli.trust_options import trust_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from edgepack.api.model import Model
    from edgepack.api.opening import OpenOptions
    from edgepack.edge.llama.options import SamplingOptions

_OPENING = [
    click.option("--ctx", "--ctx-size", "ctx", type=click.IntRange(min=1), help="Context.  [default: fitted]"),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, or a profile to behave as."),
    click.option("--n-gpu-layers", type=click.IntRange(min=-1), help="Layers on the GPU.  [default: what fits]"),
    click.option("--kv-type", help="KV cache: f16, q8_0, q8_0/q4_0 (K/V) …, or auto.  [default: auto]"),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: cores that are free]"),
    click.option("--adapter", "adapters", multiple=True, metavar="FILE[:SCALE]", help="Apply a GGUF LoRA; repeatable."),
    click.option("--no-adapters", is_flag=True, help="Leave out the adapters that an archive brings."),
    click.option("--engine", type=click.Choice(["auto", "llama-cpp-python", "xllamacpp"]), default="auto",
                 show_default=True, help="What runs the model; auto: the first of the two that is installed."),
    click.option("--verify", is_flag=True, help="Check every byte of an installed archive first."),
]  # fmt: skip
_SAMPLING = [
    click.option("--temperature", "--temp", type=click.FloatRange(min=0), default=0.8, show_default=True,
                 help="0 always takes the most probable token."),
    click.option("--top-k", type=click.IntRange(min=0), default=40, show_default=True, help="0: off."),
    click.option("--top-p", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="1: off."),
    click.option("--min-p", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="0: off."),
    click.option("--typical", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="1: off."),
    click.option("--repeat-penalty", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
                 help="1: off."),
    click.option("--repeat-last-n", type=click.IntRange(min=0), default=64, show_default=True, help="0: off."),
    click.option("--frequency-penalty", type=float, default=0.0, show_default=True),
    click.option("--presence-penalty", type=float, default=0.0, show_default=True),
    click.option("--seed", type=click.IntRange(-1, 2**32 - 1), default=-1, show_default=True, help="-1: a new one."),
    click.option("--grammar", metavar="GBNF|@FILE", help="What the answer must follow."),
    click.option("--json-schema", metavar="JSON|@FILE", help="The answer is JSON of this schema."),
]  # fmt: skip


def opening_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how a model is opened; `open_options` reads them."""
    return trust_options(_decorated(command, _OPENING))


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how tokens are chosen; `sampling` reads them."""
    return _decorated(command, _SAMPLING)


def _decorated(command: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def open_options(values: Mapping[str, Any]) -> OpenOptions:
    """The opening options of the command line."""
    from edgepack.api.opening import OpenOptions, parse_adapter
    from edgepack.edge.install.in_place import FromArchive

    return OpenOptions(
        ctx=values["ctx"],
        device=values["device"],
        n_gpu_layers=values["n_gpu_layers"],
        kv_type=values["kv_type"],
        threads=values["threads"],
        adapters=tuple(parse_adapter(text) for text in values["adapters"]),
        own_adapters=not values["no_adapters"],
        projector=values.get("mmproj"),  # of `run` and `serve`
        verify=values["verify"],
        engine=values["engine"],
        from_archive=FromArchive(values.get("from_archive", "never")),  # only `run` has the option
        trust=values["trusted"],
    )


def prepared(file: Path, values: Mapping[str, Any], template: str | None = None) -> Model:
    """The model in `file`, installed where it is an archive, not yet opened."""
    from edgepack.api.loading import prepare_model

    return prepare_model(file, open_options(values), template, progress=terminal_progress, note=note)


def sampling(values: Mapping[str, Any]) -> SamplingOptions:
    """The sampling options of the command line."""
    from edgepack.edge.chat.constraints import read_constraints
    from edgepack.edge.llama.options import SamplingOptions

    grammar, schema = read_constraints(values["grammar"], values["json_schema"])
    return SamplingOptions(
        temperature=values["temperature"],
        top_k=values["top_k"],
        top_p=values["top_p"],
        min_p=values["min_p"],
        typical_p=values["typical"],
        repeat_penalty=values["repeat_penalty"],
        repeat_last_n=values["repeat_last_n"],
        frequency_penalty=values["frequency_penalty"],
        presence_penalty=values["presence_penalty"],
        seed=values["seed"],
        grammar=grammar,
        json_schema=schema,
    )
