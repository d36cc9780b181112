"""`edgepack serve`: an OpenAI-compatible server and a chat page on this machine; the work is `edge.serve.server`'s."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgepack.cli.model_options import open_options, opening_options
from edgepack.cli.output import json_option, note, print_json, terminal_progress


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Any but a loopback address needs --api-key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--api-key", envvar="EDGEPACK_API_KEY", help="What clients must send.  [env: EDGEPACK_API_KEY]")
@click.option("--template", metavar="NAME|FILE", help="Chat template: one that llama.cpp knows, or a Jinja file.")
@opening_options
@json_option
def command(file: Path, **values: Any) -> None:
    """Serve the model in FILE (GGUF or archive) to OpenAI clients and to a browser on this machine."""
    from edgepack.api.opening import open_file
    from edgepack.edge.fit.opening import runtime_options
    from edgepack.edge.serve.server import ServedModel, ServerOptions, bound_socket, build_app, check_address, serve

    options = ServerOptions(values["host"], values["port"], values["api_key"], file.stem)
    check_address(options)
    source, wish = open_file(file, open_options(values), terminal_progress, note)
    template = _template(source, values["template"], file)
    with closing(bound_socket(options)) as listener:
        # llama-cpp-python's class reserves every position's logits: fit must know.
        opened = runtime_options(source.header, replace(wish, max_outputs=0))
        model = ServedModel(source, opened, template, options.name)
        app = build_app(model, options)
        port = listener.getsockname()[1]
        address = f"http://{options.host}:{port}"
        if values["as_json"]:
            print_json({"url": address, "model": options.name, "ctx": opened.n_ctx})
        note(f"{options.name}: chat at {address}/, OpenAI API at {address}/v1 (Ctrl-C ends)")
        try:
            serve(app, listener)
        finally:
            model.close()
            if template is not None:
                template.close()


def _template(source: Any, wanted: str | None, file: Path) -> Any:
    """The template, or None with a note: completions and embeddings work without one."""
    from edgepack.edge.chat.template import choose_template, special_tokens

    if source.template is None and wanted is None:
        note(f"{file}: no chat template, so chats are refused; --template NAME chooses one")
        return None
    return choose_template(wanted, source.template, special_tokens(source.header), str(file))
