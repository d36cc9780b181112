"""Which options go together: by kind of target, beside passes, with one another; the one place that refuses them.

It looks at the request alone and opens nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.errors import UsageError
from edgepack.pipeline.export_options import given_options
from edgepack.pipeline.options import CODED, GGUF, WIRE
from edgepack.pipeline.request import ExportRequest, refinable

if TYPE_CHECKING:
    from collections.abc import Callable

_EXPECTED = {(GGUF,): "a gguf target", (CODED,): "an edge target", (WIRE,): "--target wire",
             (GGUF, CODED): "a gguf or an edge target", (GGUF, WIRE): "a gguf target or --target wire"}  # fmt: skip

# What a projector takes that is written alone.
_OF_PROJECTORS = frozenset({"mmproj", "mmproj_type", "output", "dry_run", "threads"})


@dataclass(frozen=True)
class Conflict:
    """Options that contradict each other.

    Attributes:
        holds: whether a request has them.
        text: the refusal; `{model}`, `{target}` and `{output}` are filled in.
    """

    holds: Callable[[ExportRequest], bool]
    text: str


def _from_file(request: ExportRequest) -> bool:
    return request.source.is_file()


def _may_refine(request: ExportRequest) -> bool:
    """Whether the file is refined, or may be by default once its passes are known."""
    return request.refines or (request.refine is None and request.has_passes and request.calibration is not None)


def _wire_goals(request: ExportRequest) -> list[float]:
    goals = (request.bits, request.max_bytes, request.min_agreement, request.max_kl)
    return [goal for goal in goals if goal is not None]


CONFLICTS: tuple[Conflict, ...] = (
    Conflict(lambda r: r.imatrix is not None and r.has_passes,
             "--imatrix: passes change what enters the layers: give --calibration TEXT instead"),
    Conflict(lambda r: r.imatrix is not None and r.calibration is not None,
             "--imatrix and --calibration: expected one of them, got both"),
    Conflict(lambda r: r.recipe is not None and bool(r.passes), "--recipe and --pass: expected one of them, got both"),
    Conflict(lambda r: r.factors is not None and not r.has_passes,
             "--factors: expected a pass lowrank that makes or reads them"),
    Conflict(lambda r: r.packs and r.shard_size is not None,
             "--pack and --shard-size: an archive is one file, expected only one of them"),
    Conflict(lambda r: r.pack and r.path is not None and r.path.suffix == ".gguf",
             "--pack: expected an output that ends in .edgepack, got '{output}'"),
    Conflict(lambda r: r.adapter is not None and r.calibration is not None and not r.has_passes and _from_file(r),
             "--adapter and --calibration of a GGUF: expected --imatrix FILE, as llama.cpp runs '{model}' without the"
             " adapter"),
    Conflict(lambda r: r.kind == WIRE and len(_wire_goals(r)) != 1,
             "--target wire: expected exactly one of --bits, --max-size, --max-download, --min-agreement, --max-kl"),
    Conflict(lambda r: r.max_download is not None and r.max_size is not None,
             "--max-download and --max-size: both limit the archive, expected one of them"),
    Conflict(lambda r: r.max_memory is not None and r.host_type is not None,
             "--max-memory and --host: expected one of them, as every matrix gets a host of its own"),
    Conflict(lambda r: r.dry_run and r.calibration is not None and r.cluster is None and (r.kind == CODED or (
        r.kind == GGUF and not r.has_passes and not r.refines)),
             "--calibration: collecting is work; with --dry-run give --imatrix FILE"),
    Conflict(lambda r: r.dry_run and r.skip_harmful,
             "--skip-harmful: coding shows which stages help; expected no --dry-run with it"),
    Conflict(lambda r: r.target is None and r.is_gated and (r.max_size or r.shard_size) is not None,
             "--min-agreement and its like choose the target: expected no --max-size or --shard-size"),
    Conflict(lambda r: r.mmproj_type is not None and not r.mmproj, "--mmproj-type: expected --mmproj with it"),
    Conflict(lambda r: r.mmproj and _from_file(r),
             "--mmproj: expected a Hugging Face folder, got the file '{model}'"),
    Conflict(lambda r: r.only_sees and r.packs,
             "--mmproj with --pack: an archive holds a model, expected --target with them"),
    Conflict(lambda r: r.target is None and r.judges_weights,
             "--max-mean-error and --max-tensor-error judge one file: expected --target"),
    Conflict(lambda r: r.dry_run and r.judges_weights,
             "--max-mean-error and --max-tensor-error look at weights: expected no --dry-run with them"),
    Conflict(lambda r: bool(r.refine) and r.imatrix is not None,
             "--refine and --imatrix: curvature takes the place of an importance matrix: expected --calibration TEXT"),
    Conflict(lambda r: bool(r.refine) and r.quantizer == "ggml",
             "--refine and --quantizer ggml: expected one of them, got both"),
    Conflict(lambda r: bool(r.refine) and not refinable(r.target),
             "--refine: expected a target between gguf-q2k and gguf-q8, whose types can be allocated, got '{target}'"),
    Conflict(lambda r: bool(r.smooth) and not _may_refine(r),
             "--smooth: expected --refine with it, or --pass smooth alone"),
    Conflict(lambda r: r.prefer_speed and not _may_refine(r), "--prefer-speed: expected --refine with it"),
    Conflict(lambda r: r.tune and not _may_refine(r),
             "--tune: expected --refine with it; `edgepack tune` takes a file that is there already"),
    Conflict(lambda r: not r.tune and (r.tune_steps or r.tune_minutes or r.tune_moves) is not None,
             "--tune-steps, --tune-minutes and --tune-moves: expected --tune with them"),
    Conflict(lambda r: r.tune_steps is not None and r.tune_minutes is not None,
             "--tune-steps and --tune-minutes: expected one of them, got both"),
    Conflict(lambda r: r.tune and r.shard_size is not None,
             "--tune and --shard-size: one file is tuned, expected only one of them"),
    Conflict(lambda r: r.tune and r.adapter is not None and r.adapter_mode != "merge",
             "--tune and --adapter-mode separate: the adapter was made for weights that do not move, expected merge"),
    Conflict(lambda r: r.tune and r.target is None and (r.is_gated or (r.packs and r.max_size is not None)),
             "--tune: a search for a gate or an archive's size would tune every try: expected --target, --bits, or"
             " --max-size of a GGUF"),
    Conflict(lambda r: r.kind == GGUF and r.bits is not None and not _may_refine(r),
             "--bits: expected --target wire, or --refine"),
    Conflict(lambda r: r.kind == GGUF and r.for_device is not None and not _may_refine(r),
             "--for-device: expected --target wire, or --refine"),
    Conflict(lambda r: r.kind == GGUF and r.max_size is not None and r.bits is not None,
             "--max-size and --bits: expected one of them, got both"),
    Conflict(lambda r: r.kind == GGUF and r.target is None and r.is_gated and (r.bits or r.for_device) is not None,
             "--min-agreement and its like choose the bytes: expected no --bits or --for-device"),
    Conflict(lambda r: not r.only_sees and r.target is None and not r.has_budget and (not r.is_gated or r.dry_run),
             "export: expected --target, or --max-size to take the largest that fits"),
)  # fmt: skip


def check_request(request: ExportRequest) -> None:
    """Refuse options that the target does not take or that contradict each other.

    Raises:
        UsageError: one line; the rule, and what was got.
    """
    given = given_options(request)
    for declared in given.values():
        if request.kind not in declared.kinds:
            raise UsageError(f"{declared.name}: expected {_EXPECTED[declared.kinds]}, got '{request.target}'")
    for conflict in CONFLICTS:
        if conflict.holds(request):
            raise UsageError(conflict.text.format(model=request.model, target=request.target, output=request.output))
    if request.only_sees:
        for name, declared in given.items():
            if name not in _OF_PROJECTORS:
                raise UsageError(f"{declared.name}: expected --target with it: --mmproj alone writes what sees")
    for declared in given.values():
        if request.has_passes and not declared.beside_passes:
            raise UsageError(f"{declared.name}: not together with --recipe or --pass")
    _check_goals(request)


def _check_goals(request: ExportRequest) -> None:
    """Goals are numbers that can be reached."""
    for name, value in (
        ("--bits", request.bits), ("--max-kl", request.max_kl), ("--max-size", request.max_bytes),
        ("--max-memory", request.memory_bytes), ("--tune-minutes", request.tune_minutes),
        ("--max-mean-error", request.max_mean_error), ("--max-tensor-error", request.max_tensor_error),
    ):  # fmt: skip
        if value is not None and not value > 0:
            raise UsageError(f"{name}: expected more than 0, got {value}")
    if request.min_agreement is not None and not 0 < request.min_agreement <= 1:
        raise UsageError(f"--min-agreement: expected more than 0 and at most 1, got {request.min_agreement}")
    if request.kind == WIRE and request.min_agreement == 1:
        raise UsageError("--min-agreement: expected less than 1 for --target wire, got 1")
