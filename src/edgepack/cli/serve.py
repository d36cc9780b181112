"""`edgepack serve`: an OpenAI-compatible server and a chat page on this machine; the work is `edge.serve`'s."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgepack.cli.model_options import open_options, opening_options
from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.errors import UsageError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but a loopback address needs --api-key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--api-key", envvar="EDGEPACK_API_KEY", help="What clients must send.  [env: EDGEPACK_API_KEY]")
@click.option("--allow-origin", "origins", multiple=True, metavar="URL", help="Let this website use it; repeatable.")
@click.option("--parallel", type=click.IntRange(1, 64), help="Requests answered at once.  [default: 4 where they fit]")
@click.option("--template", metavar="NAME|FILE", help="Chat template: one that llama.cpp knows, or a Jinja file.")
@click.option(
    "--mmproj",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Projector: the model sees images.  [default: the archive's own]",
)
@click.option("--confidence/--no-confidence", default=True,
              help="Tell how sure answers are, where the file was calibrated.")  # fmt: skip
@opening_options
@json_option
def command(file: Path, **values: Any) -> None:
    """Serve the model in FILE (GGUF or archive) to OpenAI and Anthropic clients and to a browser on this machine."""
    from edgepack.api.opening import open_file
    from edgepack.edge.confidence.opening import find_record
    from edgepack.edge.fit.opening import runtime_options
    from edgepack.edge.serve import opening
    from edgepack.edge.serve.server import ServerOptions, bound_socket, check_address, serve

    options = ServerOptions(values["host"], values["port"], values["api_key"], file.stem, values["origins"])
    check_address(options)
    if values["engine"] == "llama-cpp-python":
        raise UsageError("--engine: serve runs on xllamacpp")
    values["engine"] = "xllamacpp"  # what fits is that engine's business, GPUs included
    source, wish = open_file(file, open_options(values), terminal_progress, note)
    template = opening.served_template(source, values["template"], str(file))
    if not template[0] and "text" in opening.tasks_of(source.header):
        note(f"{file}: no chat template, so chats are refused; --template NAME chooses one")
    with closing(bound_socket(options)) as listener:
        opened = runtime_options(source.header, wish, note)
        slots = opening.slots_that_fit(source.header, opened, wish.device, values["parallel"], wish.beside)
        facts = opening.served_facts(source, options.name, opened.n_ctx, slots, has_template=bool(template[0]))
        if values["confidence"]:
            found = find_record(
                source.path, source.header, opened.adapters,
                own_template=values["template"] is None, progress=terminal_progress,
            )  # fmt: skip
            if found.problem:
                note(f"{file}: {found.problem}")
            if found.record is not None:
                facts = replace(facts, confidence=found.record.fitted)
        settings = opening.engine_settings(source, opened, facts, template)
        address = f"http://{options.host}:{listener.getsockname()[1]}"

        def ready(served: Any) -> None:
            if values["as_json"]:
                print_json({"url": address, "model": served.name, "ctx": served.n_ctx, "slots": served.slots})
            note(f"{served.name}: chat at {address}/, OpenAI API at {address}/v1 (Ctrl-C ends)")

        serve(settings, facts, options, listener, note=note, ready=ready)
