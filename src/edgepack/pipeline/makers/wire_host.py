"""What a device can hold, a host type of the wire or bytes: `edgepack fit` on a header without weights."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.export.mapped import MappedModel
    from edgepack.export.plan import ExportPlan
    from edgepack.quant.codecs.ggml.host_grids import Host


def choose_host(model: MappedModel, device: str) -> Host:
    """The largest host with which the model fits `device`.

    Raises:
        CheckFailedError: not even the smallest fits.
    """
    from edgepack.quant.codecs.ggml.host_grids import HOSTS

    fitting = [host for host in HOSTS.values() if fits_device(model, host, device)]
    if not fitting:
        raise CheckFailedError(f"--for-device {device}: no host fits, not even q4k: use a smaller model")
    return fitting[0]


def check_host(model: MappedModel, host: Host, device: str) -> None:
    """Refuse a host that does not fit; raises CheckFailedError, naming the largest that does."""
    if not fits_device(model, host, device):
        best = choose_host(model, device)
        name = host.kind.name
        raise CheckFailedError(f"--host {name}: does not fit {device}; the largest that does is {best.kind.name}")


def memory_for(model: MappedModel, device: str) -> int:
    """Bytes that a GGUF of mixed hosts may have on a device; 0 where the largest host fits everywhere.

    Raises:
        CheckFailedError: not even the smallest fits.
    """
    from edgepack.quant.codecs.ggml.host_grids import HOSTS

    plans = [host_plan(model, host) for host in HOSTS.values()]
    found = largest_bytes_on(plans, device)
    return 0 if found == plans[0].total_bytes else found


def fits_device(model: MappedModel, host: Host, device: str) -> bool:
    """Whether a GGUF of the host's type fits the device."""
    return plan_fits(host_plan(model, host), device)


def host_plan(model: MappedModel, host: Host) -> ExportPlan:
    """The GGUF of a model whose matrices all have a host's type."""
    from edgepack.export.plan import PlanOptions, plan_export
    from edgepack.export.wire.plan import host_target
    from edgepack.quant.types.choice import Overrides

    return plan_export(model, host_target(host), PlanOptions(Overrides(pure=True)))


def plan_fits(plan: ExportPlan, device: str) -> bool:
    """Whether a planned GGUF fits a device; no weights are read."""
    from edgepack.edge.fit.choice import Fitter
    from edgepack.edge.fit.devices import find_device
    from edgepack.edge.fit.shape import read_shape
    from edgepack.gguf.reader import read_header
    from edgepack.gguf.writer import GGUFWriter

    with tempfile.TemporaryDirectory(prefix="edgepack-fit-") as folder:
        path = Path(folder, "header.gguf")
        with path.open("wb") as stream:  # a header and a hole: no weights are needed to know the memory
            GGUFWriter(stream, plan.metadata, plan.infos).write_header()
            stream.truncate(plan.total_bytes)
        fit = Fitter(read_shape(read_header(path)), find_device(device)).choose()
    return fit.fits


def largest_bytes_on(plans: Sequence[ExportPlan], device: str) -> int:
    """The most bytes of a model's GGUF with which it fits `device`, to a tensor: between two stock plans by halves.

    Args:
        plans: of one model, from large to small.
        device: as `edgepack fit` knows it.

    Raises:
        CheckFailedError: not even the smallest fits.
    """
    fitting = next((n for n, plan in enumerate(plans) if plan_fits(plan, device)), None)
    if fitting is None:
        raise CheckFailedError(f"--for-device {device}: not even {plans[-1].target.label} fits: use a smaller model")
    return plans[fitting].total_bytes if not fitting else _between(plans[fitting - 1], plans[fitting], device)


def _between(large: ExportPlan, small: ExportPlan, device: str) -> int:
    """By halves: the first tensors have the larger plan's types, the others the smaller one's."""
    low, high, best = 0, len(large.tensors), small.total_bytes
    while high - low > 1:
        middle = (low + high) // 2
        mixed = replace(small, tensors=(*large.tensors[:middle], *small.tensors[middle:]))
        if plan_fits(mixed, device):
            low, best = middle, mixed.total_bytes
        else:
            high = middle
    return best
