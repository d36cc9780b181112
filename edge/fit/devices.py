"""Devices: profiles from data sheets, and what this machine has; what fits on them is left to `fit`."""

from __future__ import annotations

import difflib
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from edgepack.edge.llama.build import features
from edgepack.edge.llama.engines import installed_engines
from edgepack.errors import UsageError

_PROFILES = Path(__file__).with_name("devices.toml")
_MIB = 2**20
_QUERY_SECONDS = 10

Kind = Literal["cuda", "metal", "vulkan", "cpu"]


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    Attributes:
        id: what `--device` takes.
        name: for people.
        kind: the llama.cpp backend it needs.
        memory: bytes that a program can have at most, before anything else uses them.
        free: bytes that are free now, where this machine was asked; None for a profile.
        bandwidth: of its memory in bytes per second; None where it must be measured.
        compute_capability: of an NVIDIA GPU, such as "7.5".
        source: where the figures come from.
    """

    id: str
    name: str
    kind: Kind
    memory: int
    bandwidth: float | None
    free: int | None = None
    compute_capability: str | None = None
    source: str = ""

    @property
    def is_gpu(self) -> bool:
        """Whether layers are moved there with n_gpu_layers."""
        return self.kind != "cpu"

    @property
    def lacks_tensor_cores(self) -> bool:
        """Turing cards of the 16 series have none, though their compute capability says otherwise."""
        return self.compute_capability == "7.5" and re.search(r"GTX 16\d\d", self.name) is not None


@cache
def profiles() -> dict[str, Device]:
    """Every profile of `devices.toml`, by id."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    tables = tomllib.loads(_PROFILES.read_text(encoding="utf-8"))
    return {name: _profile(name, table) for name, table in tables.items()}


def _profile(name: str, table: dict[str, Any]) -> Device:
    gigabytes = table.get("bandwidth_gb") or table["bus_bits"] / 8 * table["gbit_per_pin"]
    return Device(
        id=name,
        name=table["name"],
        kind=table["kind"],
        memory=table["memory_mib"] * _MIB,
        bandwidth=gigabytes * 1e9,
        compute_capability=table.get("compute_capability"),
        source=table["source"],
    )


def find_device(name: str) -> Device:
    """The device called `name`: a profile, `auto` (the best of this machine) or `cpu` (this machine's CPU).

    Raises:
        UsageError: there is none of that name; the nearest ones are named.
    """
    if name == "cpu":
        return this_cpu()
    if name == "auto":
        return (installed_gpus() or [this_cpu()])[0]
    try:
        return profiles()[name]
    except KeyError:
        near = difflib.get_close_matches(name, profiles(), 3, 0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(profiles())}"
        raise UsageError(f"device '{name}': unknown; {hint} ('auto' and 'cpu' are this machine)") from None


def this_cpu() -> Device:
    """This machine's CPU and memory."""
    total, free = memory_bytes()
    return Device("cpu", cpu_name(), "cpu", total, None, free, source="this machine")


def installed_gpus() -> list[Device]:
    """NVIDIA GPUs that `nvidia-smi` lists, the one with the most free memory first; none where it is absent."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = "name,memory.total,memory.free,compute_cap"
    try:
        result = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = [_queried_gpu(line) for line in result.stdout.splitlines()]
    return sorted((gpu for gpu in gpus if gpu is not None), key=lambda gpu: -(gpu.free or 0))


def _queried_gpu(line: str) -> Device | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[1].isdigit() or not parts[2].isdigit():
        return None
    name, total, free, capability = parts
    known = [profile for profile in profiles().values() if _same_card(profile, name, int(total) * _MIB)]
    bandwidth = known[0].bandwidth if known else None
    return Device("auto", name, "cuda", int(total) * _MIB, bandwidth, int(free) * _MIB, capability, "nvidia-smi")


def _same_card(profile: Device, name: str, memory: int) -> bool:
    """Whether a queried card is the profile's: the same name without brackets, and about the same memory."""
    plain = re.sub(r"\s*\(.*\)", "", profile.name).removeprefix("NVIDIA ").lower()
    asked = name.removeprefix("NVIDIA ").removesuffix(" GPU").lower()
    return plain == asked and abs(profile.memory - memory) < 0.1 * memory


def cpu_name() -> str:
    """The processor's name and core count."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        name = match[1].strip() if match else name
    return f"{name}, {os.cpu_count()} threads"


def memory_bytes() -> tuple[int, int]:
    """(total, available) bytes of memory, the container's limit respected where there is one."""
    total, free = _meminfo()
    for path, used_path in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = _number(path), _number(used_path)
        if limit and limit < total:
            return limit, max(0, min(free, limit - (used or 0)))
    return total, free


def _meminfo() -> tuple[int, int]:
    info = Path("/proc/meminfo")
    if info.is_file():
        found: dict[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB", info.read_text(encoding="ascii"), re.MULTILINE))
        return int(found["MemTotal"]) * 1024, int(found.get("MemAvailable", found["MemFree"])) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    return 8 * 2**30, 8 * 2**30  # nothing to ask here (Windows without psutil): a small laptop


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


@cache
def cpu_features() -> frozenset[str]:
    """Instruction sets that the preferred engine's build uses on this CPU, as it spells them (AVX2, NEON)."""
    found = installed_engines()
    return features(found[0].name) if found else frozenset()
