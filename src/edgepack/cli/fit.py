"""`edgepack fit`: what fits on a device and how fast it would be, printed for people; chosen in `edge.fit.choice`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepack.cli.output import SIZE, json_option, print_json
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from edgepack.edge.fit.choice import Fit
    from edgepack.edge.fit.devices import Device
    from edgepack.edge.fit.shape import ModelShape
    from edgepack.gguf.reader import GGUFHeader


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="A profile such as gtx-1660; auto and cpu: here.")
@click.option("--ctx", type=click.IntRange(min=1), help="Tokens of context.  [default: up to 8192, what fits]")
@click.option("--kv-type", help="Type of the KV cache, such as q8_0.  [default: f16, q8_0 where that is too large]")
@click.option("--host-memory", type=SIZE, help="Main memory beside a profile's GPU.  [default: 16GB]")
@click.option("--no-probe", is_flag=True, help="Do not measure this CPU's speed (two seconds, once for a model).")
@click.option("--list-devices", is_flag=True, help="Print the known devices instead.")
@json_option
def command(
    file: Path,
    device: str,
    ctx: int | None,
    kv_type: str | None,
    host_memory: int | None,
    no_probe: bool,
    list_devices: bool,
    as_json: bool,
) -> int:
    """Say whether the model in FILE (GGUF or archive) fits on a device, how to open it, and how fast it would be.

    Exit code 1 when it does not fit.
    """
    from edgepack.edge.fit.choice import HOST_MEMORY, Fitter, FitWish
    from edgepack.edge.fit.devices import find_device, profiles
    from edgepack.edge.fit.memory import mapped_weights
    from edgepack.edge.fit.shape import read_shape
    from edgepack.edge.install.model_file import peek

    if list_devices:
        _list(list(profiles().values()))
        return 0
    where = find_device(device)
    header = peek(file)
    shape = read_shape(header)
    weights = None
    if where.id == "cpu":
        from edgepack.edge.fit.devices import cpu_features

        weights = mapped_weights(header, cpu_features())
    fit = Fitter(shape, where, FitWish(ctx, kv_type, host_memory or HOST_MEMORY, cpu_weights=weights)).choose()
    if where.id == "cpu" and fit.fits and not no_probe:
        fit = _probed(fit, header, shape)
    if as_json:
        print_json(as_object(fit) | {"file_bytes": file.stat().st_size, "model_bytes": header.file_bytes})
    else:
        _print(fit, file, shape, header.file_bytes)
    return 0 if fit.fits else 1


def _probed(fit: Fit, header: GGUFHeader, shape: ModelShape) -> Fit:
    from edgepack.edge.fit.probe import probe_cpu
    from edgepack.edge.fit.speed import probed_tokens_per_second

    return replace(fit, tokens_per_second=probed_tokens_per_second(shape, probe_cpu(header, shape)))


def as_object(fit: Fit) -> dict[str, Any]:
    """The contract's JSON object."""
    use = fit.plan.gpu if fit.device.is_gpu and fit.request.n_gpu_layers else fit.plan.cpu
    return {
        "device": fit.device.id,
        "device_name": fit.device.name,
        "fits": fit.fits,
        "reason": fit.reason,
        "n_gpu_layers": fit.request.n_gpu_layers,
        "ctx": fit.request.n_ctx,
        "kv_type": fit.request.kv_type_k,
        "batch": fit.request.n_batch,
        "ubatch": fit.request.n_ubatch,
        "flash_attention": fit.request.flash_attention,
        "memory": {
            "weights": use.weights,
            "kv": use.kv,
            "compute": use.compute,
            "overhead": fit.overhead,
            "total": fit.needed,
        },
        "droppable": fit.droppable,
        "host_memory": fit.plan.cpu.total,
        "available": fit.available,
        "margin": fit.margin,
        "tokens_per_second": fit.tokens_per_second,
        "largest_ctx": fit.largest_context,
    }


def _list(devices: list[Device]) -> None:
    for device in devices:
        speed = f"{device.bandwidth / 1e9:.0f} GB/s" if device.bandwidth else ""
        click.echo(f"{device.id:<16} {device.name:<40} {format_size(device.memory):>8}  {speed:>8}")


def _print(fit: Fit, file: Path, shape: ModelShape, model_bytes: int) -> None:
    data, shipped = as_object(fit), file.stat().st_size
    layers = len(shape.layers) + 1
    click.echo(f"{file.name} on {fit.device.name}: {'fits' if fit.fits else 'DOES NOT FIT'} ({fit.reason})")
    rows = [(name, format_size(data["memory"][name])) for name in ("weights", "kv", "compute", "overhead", "total")]
    if shipped != model_bytes:
        rows.insert(0, ("on disk", f"{format_size(shipped)} to download, {format_size(model_bytes)} when installed"))
    if fit.droppable:
        rows.append(("of these", f"{format_size(fit.droppable)} are file pages that the system may drop"))
    rows += [("may be used", f"{format_size(fit.available)} (a margin of {format_size(fit.margin)} stays free)")]
    if fit.device.is_gpu:
        rows.append(("layers on the GPU", f"{fit.request.n_gpu_layers} of {layers}"))
        rows.append(("main memory", format_size(data["host_memory"])))
    rows.append(("context", f"{fit.request.n_ctx} tokens of {shape.n_ctx_train}"))
    rows.append(("KV cache as", fit.request.kv_type_k))
    rows.append(("batch", f"{fit.request.n_batch}, {fit.request.n_ubatch} at once, flash attention"))
    largest = ", ".join(f"{kind}: {n}" if n else f"{kind}: none" for kind, n in fit.largest_context.items())
    rows.append(("largest context", f"{largest} (everything on the device)"))
    if fit.tokens_per_second is not None:
        how = "measured layers" if fit.device.id == "cpu" else "estimate"
        decimals = 0 if fit.tokens_per_second >= 10 else 1
        rows.append(("speed", f"about {fit.tokens_per_second:,.{decimals}f} tokens/s ({how})"))
    for name, text in rows:
        click.echo(f"  {name:<18} {text}")
