"""Which host type of the wire a device can hold: `edgepack fit` on a header without weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import CheckFailedError

if TYPE_CHECKING:
    from edgepack.quant.codecs.ggml.host_grids import Host


def choose_host(model: Path, device: str | None, *, pre: str | None = None) -> Host:
    """The largest host with which the model fits `device`; q6k without a device.

    Raises:
        CheckFailedError: not even the smallest fits.
    """
    from edgepack.quant.codecs.ggml.host_grids import HOSTS

    if device is None:
        return HOSTS["q6k"]
    fitting = [host for host in HOSTS.values() if fits_device(model, host, device, pre=pre)]
    if not fitting:
        raise CheckFailedError(f"--for-device {device}: no host fits, not even q4k: use a smaller model")
    return fitting[0]


def check_host(model: Path, host: Host, device: str | None, *, pre: str | None = None) -> None:
    """Refuse a host that does not fit; raises CheckFailedError, naming the largest that does."""
    if device is not None and not fits_device(model, host, device, pre=pre):
        best = choose_host(model, device, pre=pre)
        name = host.kind.name
        raise CheckFailedError(f"--host {name}: does not fit {device}; the largest that does is {best.kind.name}")


def fits_device(model: Path, host: Host, device: str, *, pre: str | None = None) -> bool:
    """Whether a GGUF of the host's type fits the device: `edgepack fit` on its header."""
    from edgepack.edge.fit.choice import Fitter
    from edgepack.edge.fit.devices import find_device
    from edgepack.edge.fit.shape import read_shape
    from edgepack.export.mapped_model import open_model
    from edgepack.export.plan import PlanOptions, plan_export
    from edgepack.export.wire.plan import host_target
    from edgepack.gguf.reader import read_header
    from edgepack.gguf.writer import GGUFWriter
    from edgepack.quant.types.choice import Overrides

    plan = plan_export(
        open_model(model, pre=pre, allow_requantize=True), host_target(host), PlanOptions(Overrides(pure=True))
    )
    with tempfile.TemporaryDirectory(prefix="edgepack-fit-") as folder:
        path = Path(folder, "header.gguf")
        with path.open("wb") as stream:  # a header and a hole: no weights are needed to know the memory
            GGUFWriter(stream, plan.metadata, plan.infos).write_header()
            stream.truncate(plan.total_bytes)
        fit = Fitter(read_shape(read_header(path)), find_device(device)).choose()
    return fit.fits
