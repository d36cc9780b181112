"""`edgepack fit`: what fits on a device and how fast it would be, printed for people; found by `edgepack.fit`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import SIZE, json_option, print_json, say
from edgepack.cli.trust_options import trust_options
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from edgepack.api.speed import FitResult
    from edgepack.packaging.trust.policy import TrustPolicy


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="A profile such as gtx-1660; auto and cpu: here.")
@click.option("--ctx", type=click.IntRange(min=1), help="Tokens of context.  [default: up to 8192, what fits]")
@click.option(
    "--kv-type",
    help="KV cache: q8_0, q8_0/q4_0 (K/V) …, or auto: f16, else what the file says costs little, else q8_0.",
)
@click.option("--host-memory", type=SIZE, help="Main memory beside a profile's GPU.  [default: 16GB]")
@click.option("--no-probe", is_flag=True, help="Do not measure this CPU's speed (two seconds, once for a model).")
@click.option("--list-devices", is_flag=True, help="Print the known devices instead.")
@trust_options
@json_option
def command(
    file: Path,
    device: str,
    ctx: int | None,
    kv_type: str | None,
    host_memory: int | None,
    no_probe: bool,
    list_devices: bool,
    trusted: TrustPolicy,
    as_json: bool,
) -> int:
    """Say whether the model in FILE (GGUF or archive) fits on a device, how to open it, and how fast it would be.

    Exit code 1 when it does not fit.
    """
    if list_devices:
        _list()
        return 0
    from edgepack.api.speed import fit

    found = fit(
        file, device=device, ctx=ctx, kv_type=kv_type, host_memory=host_memory, probe=not no_probe, trusted=trusted
    )
    if as_json:
        print_json(found.json())
    else:
        _print(found, file)
    return 0 if found.fits else 1


def _list() -> None:
    from edgepack.edge.fit.devices import profiles

    for device in profiles().values():
        speed = f"{device.bandwidth / 1e9:.0f} GB/s" if device.bandwidth else ""
        say(f"{device.id:<16} {device.name:<40} {format_size(device.memory):>8}  {speed:>8}")


def _print(fit: FitResult, file: Path) -> None:
    from edgepack.edge.fit.probe import can_probe
    from edgepack.edge.llama.engines import COMPRESS_EXTRA

    say(f"{file.name} on {fit.device_name}: {'fits' if fit.fits else 'DOES NOT FIT'} ({fit.reason})")
    rows = [(name, format_size(size)) for name, size in asdict(fit.memory).items()]
    if fit.file_bytes != fit.model_bytes:
        installed = f"{format_size(fit.file_bytes)} to download, {format_size(fit.model_bytes)} when installed"
        rows.insert(0, ("on disk", installed))
    if fit.droppable:
        rows.append(("of these", f"{format_size(fit.droppable)} are file pages that the system may drop"))
    if fit.projector:
        rows.append(("what sees", f"{format_size(fit.projector)}, loaded beside it"))
    rows += [("may be used", f"{format_size(fit.available)} (a margin of {format_size(fit.margin)} stays free)")]
    if fit.on_gpu:
        rows.append(("layers on the GPU", f"{fit.n_gpu_layers} of {fit.layers}"))
        rows.append(("main memory", format_size(fit.host_memory)))
    rows.append(("context", f"{fit.ctx} tokens of {fit.ctx_train}"))
    cost = "" if fit.kv_kl is None else f" (KL {fit.kv_kl:.4f} nats a token to f16, as the file states)"
    rows.append(("KV cache as", f"{fit.kv_type}{cost}"))
    rows.append(("batch", f"{fit.batch}, {fit.ubatch} at once, flash attention"))
    largest = ", ".join(f"{kind}: {n}" if n else f"{kind}: none" for kind, n in fit.largest_ctx.items())
    rows.append(("largest context", f"{largest} (everything on the device)"))
    if fit.tokens_per_second is not None:
        how = "measured layers" if fit.device == "cpu" else "estimate"
        decimals = 0 if fit.tokens_per_second >= 10 else 1
        rows.append(("speed", f"about {fit.tokens_per_second:,.{decimals}f} tokens/s ({how})"))
    elif fit.device == "cpu" and fit.fits and not can_probe():
        rows.append(("speed", f"measured by llama-cpp-python: {COMPRESS_EXTRA}"))
    for name, text in rows:
        say(f"  {name:<18} {text}")
    _print_contexts(fit)


def _print_contexts(fit: FitResult) -> None:
    """One line a context."""
    layers = "  layers on the GPU" if fit.on_gpu else ""
    say(f"\n  {'context':>9}  {'KV cache':>16}  {'in all':>9}{layers}")
    for row in fit.contexts:
        cache = f"{format_size(row.kv)} as {row.kv_type}"
        on_gpu = f"  {row.n_gpu_layers} of {fit.layers}" if fit.on_gpu else ""
        verdict = "" if row.fits else "  DOES NOT FIT"
        say(f"  {row.ctx:>9,}  {cache:>16}  {format_size(row.total):>9}{on_gpu}{verdict}")
