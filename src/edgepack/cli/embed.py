"""`edgepack embed`: embeddings of texts; computed in `edge.llama.runtime`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from edgepack.cli.model_options import open_wish, opening_options, prepared
from edgepack.cli.output import json_option, print_json
from edgepack.errors import UsageError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--normalize", is_flag=True, help="Scale each embedding to length 1.")
@opening_options
@json_option
def command(file: Path, texts: tuple[str, ...], **values: Any) -> None:
    """Print the embedding of each of TEXTS (or each line of the input), one JSON array a line."""
    from dataclasses import replace

    import numpy as np

    from edgepack.edge.fit.opening import runtime_options
    from edgepack.edge.llama.runtime import LoadedModel

    lines = list(texts) or [line.rstrip("\n") for line in sys.stdin]
    if not lines:
        raise UsageError("embed: expected texts as arguments or as lines of the input, got none")
    source = prepared(file, values)
    options = runtime_options(source.header, replace(open_wish(source, values), embeddings=True))
    found = []
    with LoadedModel(source.path, options) as model:
        for text in lines:
            vector = model.embed(model.tokenize(text, parse_special=True))
            length = float(np.linalg.norm(vector)) or 1.0
            found.append((vector / length if values["normalize"] else vector).tolist())
            if not values["as_json"]:
                click.echo(json.dumps(found[-1]))
        width = model.n_embd
    if values["as_json"]:
        print_json({"model": file.name, "dimensions": width, "texts": lines, "embeddings": found})
