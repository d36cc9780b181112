"""Options that several commands share: how a model is opened, how tokens are chosen. Names are llama.cpp's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import note, terminal_progress
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgepack.edge.fit.opening import OpenWish
    from edgepack.edge.install.model_file import ModelFile
    from edgepack.edge.llama.options import Adapter, SamplingOptions

_OPENING = [
    click.option("--ctx", "--ctx-size", "ctx", type=click.IntRange(min=1), help="Context.  [default: fitted]"),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, or a profile to behave as."),
    click.option("--n-gpu-layers", type=click.IntRange(min=-1), help="Layers on the GPU.  [default: what fits]"),
    click.option("--kv-type", help="Type of the KV cache: f16, q8_0, q4_0 …  [default: f16, q8_0 where it must be]"),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: physical cores]"),
    click.option("--adapter", "adapters", multiple=True, metavar="FILE[:SCALE]", help="Apply a GGUF LoRA; repeatable."),
    click.option("--no-adapters", is_flag=True, help="Leave out the adapters that an archive brings."),
    click.option("--verify", is_flag=True, help="Check every byte of an installed archive first."),
]
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
    """Add the options of how a model is opened; `open_wish` reads them."""
    return _decorated(command, _OPENING)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how tokens are chosen; `sampling` reads them."""
    return _decorated(command, _SAMPLING)


def _decorated(command: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def prepared(file: Path, values: Mapping[str, Any]) -> ModelFile:
    """The model in `file`, installed where it is an archive."""
    from edgepack.edge.install.in_place import FromArchive
    from edgepack.edge.install.model_file import prepare

    wish = FromArchive(values.get("from_archive", "never"))  # only `run` has the option
    return prepare(file, verify=values["verify"], from_archive=wish, progress=terminal_progress, note=note)


def open_wish(source: ModelFile, values: Mapping[str, Any]) -> OpenWish:
    """What the options insist on, with the adapters of the archive and of the command line."""
    from edgepack.edge.fit.opening import OpenWish
    from edgepack.edge.llama.check import check_adapter
    from edgepack.edge.llama.options import Adapter

    own = () if values["no_adapters"] else tuple(Adapter(path) for path in source.adapters)
    adapters = own + tuple(parse_adapter(text) for text in values["adapters"])
    for adapter in adapters:
        check_adapter(adapter.path, source.header)
    return OpenWish(
        device=values["device"],
        n_ctx=values["ctx"],
        kv_type=values["kv_type"],
        n_gpu_layers=values["n_gpu_layers"],
        threads=values["threads"],
        adapters=adapters,
    )


def parse_adapter(text: str) -> Adapter:
    """`FILE` or `FILE:SCALE`; raises UsageError when it is neither."""
    from edgepack.edge.llama.options import Adapter

    name, colon, scale = text.rpartition(":")
    path, strength = Path(text), 1.0
    if colon and not path.is_file():
        try:
            path, strength = Path(name), float(scale)
        except ValueError:
            raise UsageError(f"adapter '{text}': expected FILE or FILE:SCALE") from None
    return Adapter(path, strength)


def sampling(values: Mapping[str, Any]) -> SamplingOptions:
    """The sampling options of the command line."""
    from edgepack.edge.chat.constraints import choose_grammar
    from edgepack.edge.llama.options import SamplingOptions

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
        grammar=choose_grammar(values["grammar"], values["json_schema"]),
    )
