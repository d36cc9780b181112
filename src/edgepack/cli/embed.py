"""`edgepack embed`: embeddings of texts; computed by `edgepack.Model.embed`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from edgepack.cli.model_options import opening_options, prepared
from edgepack.cli.output import json_option, print_json, say
from edgepack.errors import UsageError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--normalize/--no-normalize", default=None, help="Scale embeddings to length 1; default: as the model.")
@click.option("--prompt-name", metavar="NAME", help="The model's prompt to put before texts; default: the model's own.")
@click.option("--rerank", metavar="QUERY", help="With a cross-encoder: how well each text answers this, best first.")
@opening_options
@json_option
def command(file: Path, texts: tuple[str, ...], **values: Any) -> None:
    """Print the embedding of each of TEXTS (or each line of the input), one JSON array a line.

    With --rerank: a score and a text a line instead, the best first.
    """
    lines = list(texts) or [line.rstrip("\n") for line in sys.stdin]
    if not lines:
        raise UsageError("embed: expected texts as arguments or as lines of the input, got none")
    if values["rerank"] is not None:
        _rerank(file, lines, values)
        return
    found: list[list[float]] = []
    with prepared(file, values) as model:
        for text in lines:
            found.append(
                model.embed(text, normalize=values["normalize"], prompt_name=values["prompt_name"])[0].tolist()
            )
            if not values["as_json"]:
                say(json.dumps(found[-1]))
    if values["as_json"]:
        print_json({"model": file.name, "dimensions": len(found[0]), "texts": lines, "embeddings": found})


def _rerank(file: Path, texts: list[str], values: dict[str, Any]) -> None:
    query = values["rerank"]
    with prepared(file, values) as model:
        scores = model.rerank(query, texts)
    order = sorted(range(len(texts)), key=lambda index: -scores[index])
    if values["as_json"]:
        results = [{"index": index, "score": scores[index], "text": texts[index]} for index in order]
        print_json({"model": file.name, "query": query, "results": results})
        return
    for index in order:
        say(f"{scores[index]:.4f}\t{texts[index]}")
