"""`edgepack doctor`: one screen about this machine; examined in `edge.doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from edgepack.cli.output import json_option, print_json, say


@click.command()
@click.option("--device", default="auto", show_default=True, help="Say what would fit on this device.")
@json_option
def command(device: str, as_json: bool) -> None:
    """Say what this machine has, which llama.cpp it runs, what to change, and what will fit."""
    from edgepack.edge.doctor import examine, prospects
    from edgepack.edge.fit.devices import find_device
    from edgepack.edge.fit.opening import running_device

    findings = examine()
    where = running_device(device) if device == "auto" else find_device(device)
    models = prospects(where)
    if as_json:
        print_json(
            {
                "findings": [asdict(finding) for finding in findings],
                "device": where.name,
                "prospects": [asdict(prospect) for prospect in models],
            }
        )
        return
    for finding in findings:
        say(f"{finding.what:<10} {finding.found}")
        if finding.advice:
            say(f"{'':<10} → {finding.advice}")
    say(f"\nwith a context of 8192 tokens on {where.name}:")
    for prospect in models:
        verdict = "fits" if prospect.fits else "does not fit"
        say(f"  {prospect.model:<13} {prospect.type:<7} {verdict}: {prospect.how}")
