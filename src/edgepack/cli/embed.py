"""`edgepack embed`: embeddings of texts; computed in `edge.llama.runtime`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.model_options import open_wish, opening_options, prepared
from edgepack.cli.output import json_option, print_json
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.gguf.reader import GGUFHeader

# What export writes of sentence-transformers' settings (`edgepack.export.rules.pooling`, which the device has not).
NORMALIZE_KEY = "edgepack.embedding.normalize"
DEFAULT_PROMPT_KEY = "edgepack.embedding.default_prompt"
PROMPT_KEY = "edgepack.embedding.prompt."


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--normalize/--no-normalize", default=None, help="Scale embeddings to length 1; default: as the model.")
@click.option("--prompt-name", metavar="NAME", help="The model's prompt to put before texts; default: the model's own.")
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
    own = source.header.get(NORMALIZE_KEY, False) is True
    normalize = own if values["normalize"] is None else values["normalize"]
    before = _prompt(source.header, values["prompt_name"])
    found = []
    with LoadedModel(source.path, options) as model:
        for text in lines:
            vector = model.embed(model.tokenize(before + text, parse_special=True))
            length = float(np.linalg.norm(vector)) or 1.0
            found.append((vector / length if normalize else vector).tolist())
            if not values["as_json"]:
                click.echo(json.dumps(found[-1]))
        width = model.n_embd
    if values["as_json"]:
        print_json({"model": file.name, "dimensions": width, "texts": lines, "embeddings": found})


def _prompt(header: GGUFHeader, name: str | None) -> str:
    """The text that the model wants before every input; raises UsageError for a name that it does not have."""
    prompts = {key.removeprefix(PROMPT_KEY): key for key in header.metadata if key.startswith(PROMPT_KEY)}
    chosen = header.get(DEFAULT_PROMPT_KEY) if name is None else name
    if chosen is None:
        return ""
    if chosen not in prompts:
        raise UsageError(f"--prompt-name '{chosen}': expected one of {', '.join(sorted(prompts)) or 'none'}")
    return str(header.get(prompts[chosen]))
