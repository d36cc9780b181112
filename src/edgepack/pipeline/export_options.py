"""What an export may be asked for: every option once, with its spelling, its help and the kinds of target that take it.

The command line makes its options of this table, the Python API its signature. What follows from them is
`pipeline.request`'s, which of them exclude each other `pipeline.accepted`'s, what they do the makers'.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.pipeline.options import CODED, GGUF, WIRE, Option, option
from edgepack.progress import Progress, silent
from edgepack.trellis import STATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepack.crew import Crew
    from edgepack.export.recipe.pass_stages import PassStages
    from edgepack.files.remote import RemoteFile
    from edgepack.model import Checkpoint

StrPath = str | Path


@dataclass(frozen=True)
class ExportOptions:
    """What the user says of an export. Sizes may be given as text (`2.5GB`), paths as text too.

    Attributes:
        model: a Hugging Face folder, a GGUF, or a URL of fsspec's of such a folder (`s3://…`), as text.
        target: such as `gguf-q5km`, `edge-nf4`, `wire`; None to have a gguf target found by a size or a gate.
        progress: told of every stretch of work.
        tell: told one line for each file that a search tried.
        original: the checkpoint that a GGUF was read back into, or that lies at a URL, while an export of it runs.
        shared: a folder for what exports of one model and text may share, such as its curvature; None shares nothing.
        crew: who does the work while an export with `cluster` runs.
        remote: the files of weights of a model at a URL, while an export of it runs.
        stages: where finished passes are kept for another run, and who hears of them; None keeps nothing.
        passes_for: target whose types passes work for in front of refining; None for that of the bytes asked for.
    """

    model: StrPath
    target: str | None = None
    progress: Progress = silent
    tell: Callable[[str], object] = lambda _line: None
    original: Checkpoint | None = None
    shared: Path | None = None
    crew: Crew | None = None
    remote: tuple[RemoteFile, ...] = ()
    stages: PassStages | None = None
    passes_for: str | None = None

    # What is read, beside the model itself.
    pre: str | None = option(
        None,
        Option("--pre", "The pre-tokenizer's name, where its structure is not known.", value="text", metavar="NAME"),
    )
    adapter: StrPath | None = option(None, Option("--adapter", "A PEFT LoRA for MODEL.", metavar="DIR"))
    adapter_mode: str = option("merge", Option(
        "--adapter-mode", "Merged into the weights, or a GGUF LoRA of its own.", value="text",
        choices=("merge", "separate"), shows_default=True,
    ))  # fmt: skip
    allow_requantize: bool = option(
        False, Option("--allow-requantize", "Quantise a GGUF's quantised tensors again.", (GGUF, CODED, WIRE), "flag")
    )
    imatrix: StrPath | None = option(
        None, Option("--imatrix", "An importance matrix of MODEL.", (GGUF, CODED), metavar="FILE")
    )
    calibration: StrPath | None = option(
        None, Option("--calibration", "A text to run through MODEL, to learn which weights matter.", metavar="TEXT")
    )

    sequences: int | None = option(None, Option(
        "--sequences", "Pieces of the calibration text, spread over it: 64, for wire 40.", value="count", metavar="N",
        beside_passes=False,
    ))  # fmt: skip
    length: int | None = option(None, Option(
        "--length", "Tokens of a piece: 512, or what the model holds.", value="count", metavar="N", beside_passes=False,
    ))  # fmt: skip

    # Which tensor becomes what.
    tensor_types: tuple[str, ...] = option((), Option(
        "--tensor-type --keep", "Type of matching tensors, whatever is chosen for the others.", (GGUF,), "texts",
        "REGEX=TYPE",
    ))  # fmt: skip
    output_type: str | None = option(
        None, Option("--output-type", "Type of output.weight (and of tied embeddings).", (GGUF,), "text", "TYPE")
    )
    embedding_type: str | None = option(
        None, Option("--embedding-type", "Type of token_embd.weight.", (GGUF,), "text", "TYPE")
    )
    pure: bool = option(
        False, Option("--pure", "Every matrix gets the target's own type: no mixture.", (GGUF,), "flag")
    )
    quantizer: str = option("edgepack", Option(
        "--quantizer", "Whose encoders: edgepack's, never worse by the weighted error, or the bytes of llama.cpp's.",
        (GGUF,), "text", choices=("edgepack", "ggml"), beside_passes=False, shows_default=True,
    ))  # fmt: skip
    refine: bool | None = option(None, Option(
        "--refine/--no-refine",
        "Types allocated within the target's bytes and matrices rounded by their curvature; by default where"
        " --calibration is given.",
        (GGUF,), "switch",
    ))  # fmt: skip
    smooth: bool | None = option(None, Option(
        "--smooth/--no-smooth",
        "Before refining, scales and an order of channels under which rounding activations costs least; by default"
        " where --calibration is given.",
        (GGUF,), "switch",
    ))  # fmt: skip
    prefer_speed: bool = option(
        False,
        Option("--prefer-speed", "With --refine: what tokens read counts, so that they come faster.", (GGUF,), "flag"),
    )
    tune: bool = option(False, Option(
        "--tune",
        "With --refine: then tune what costs no bytes towards MODEL's logits; dropped where it does not help.", (GGUF,),
        "flag",
    ))  # fmt: skip
    tune_steps: int | None = option(
        None, Option("--tune-steps", "With --tune: how many steps.", (GGUF,), "count", metavar="N")
    )
    tune_minutes: float | None = option(
        None,
        Option("--tune-minutes", "Or as many as fit into this time: 10 by default.", (GGUF,), "number", metavar="M"),
    )
    tune_moves: str | None = option(None, Option(
        "--tune-moves", "With --tune: move integers by one too, straight-through or by a Gumbel relaxation.", (GGUF,),
        "text", choices=("ste", "gumbel"),
    ))  # fmt: skip
    tensor_codecs: tuple[str, ...] = option((), Option(
        "--tensor-codec", "For edge targets: codec of matching tensors, such as 'attn_.*=vptq3'.", (CODED,), "texts",
        "REGEX=CODEC",
    ))  # fmt: skip
    skip_harmful: bool = option(
        False, Option("--skip-harmful", "For edge targets: drop a chain's stages that do not help.", (CODED,), "flag")
    )
    host_type: str | None = option(None, Option(
        "--host-type", "For wire: q8, q6k, q5k or q4k; what llama.cpp runs.", (WIRE,), "text", "H", hidden=("--host",),
    ))  # fmt: skip
    rdo: float | None = option(
        None, Option("--rdo", "For wire: pull towards zero, for rates below 3 bits.", (WIRE,), "number", "L")
    )
    trellis: str | None = option(None, Option(
        "--trellis", "For wire: states of the trellis, 8 by default; 64 gain a little more, slowly; 0: none.", (WIRE,),
        "text", "N", choices=("0", *map(str, STATES)),
    ))  # fmt: skip
    drift: bool = option(
        False, Option("--drift", "For wire: fit blocks to what the rounded ones before give.", (WIRE,), "flag")
    )
    for_device: str | None = option(None, Option(
        "--for-device", "For wire and --refine: a device that must hold the file, such as gtx-1660.", (GGUF, WIRE),
        "text", "D",
    ))  # fmt: skip

    # What sees, beside the model that reads.
    mmproj: bool = option(False, Option(
        "--mmproj", "Also write what sees: a projector GGUF for llama.cpp; without --target it alone.", value="flag",
    ))  # fmt: skip
    mmproj_type: str | None = option(
        None, Option("--mmproj-type", "Its type: f16 (default), bf16, q8_0 or f32.", value="text", metavar="TYPE")
    )

    # What is done to the weights before they are written.
    recipe: StrPath | None = option(
        None, Option("--recipe", "Passes on the weights, in order; TOML or JSON.", metavar="FILE")
    )
    passes: tuple[str, ...] = option((), Option(
        "--pass", "One pass, such as prune:method=wanda,sparsity=0.6, awq, gptq, lowrank:rank=64; repeatable.",
        value="texts", metavar="NAME:KEY=VALUE,…",
    ))  # fmt: skip
    factors: StrPath | None = option(None, Option(
        "--factors", "Where lowrank stores its factors (U·S, V, mean), or with method=stored reads them.",
        metavar="SAFETENSORS",
    ))  # fmt: skip
    device: str = option(
        "cpu",
        Option("--device", "Torch device of passes and calibration.", value="text", metavar="D", shows_default=True),
    )

    # The goal: what must be reached.
    max_size: int | str | None = option(
        None, Option("--max-size", "Without --target: the largest type that fits.", value="size", metavar="S")
    )
    max_download: int | str | None = option(
        None, Option("--max-download", "For wire: of the archive, as --max-size.", (WIRE,), "size", "S")
    )
    max_memory: int | str | None = option(None, Option(
        "--max-memory", "For wire: of the GGUF on the device; each matrix gets the host that serves it best.", (WIRE,),
        "size", "S",
    ))  # fmt: skip
    bits: float | None = option(None, Option(
        "--bits", "Bits a weight: for wire of the archive, with --refine of the GGUF.", (GGUF, WIRE), "number", "B",
    ))  # fmt: skip
    min_agreement: float | None = option(None, Option(
        "--min-agreement", "Least share of equal first choices; without --target the smallest type that reaches it.",
        value="number", metavar="A",
    ))  # fmt: skip
    max_kl: float | None = option(
        None, Option("--max-kl", "Largest mean KL divergence; likewise.", value="number", metavar="NATS")
    )
    max_mean_error: float | None = option(None, Option(
        "--max-mean-error", "Bar on the mean of the matrices' relative errors, such as 0.15.", value="number",
        metavar="E",
    ))  # fmt: skip
    max_tensor_error: float | None = option(
        None, Option("--max-tensor-error", "Bar on the largest of them, such as 0.25.", value="number", metavar="E")
    )
    validate: bool = option(False, Option("--validate", "Hold the file against the original at the end.", value="flag"))
    text: StrPath | None = option(
        None, Option("--text", "Text to score; default the model's own samples.", metavar="FILE")
    )
    chunks: int | None = option(None, Option("--chunks", "Score only the first N chunks.", value="count", metavar="N"))

    # What is written, and how.
    output: StrPath | None = option(None, Option("-o --output", "Default: by the GGUF naming convention, here."))
    force: bool = option(
        False, Option("--force", "Replace files that are there already; never an input.", value="flag")
    )
    pack: bool = option(
        False, Option("--pack", "Write an archive instead; -o and --max-size mean the archive.", value="flag")
    )
    provenance: bool = option(
        False, Option("--provenance", "Write NAME.intoto.json beside a GGUF; an archive always holds it.", value="flag")
    )
    shard_size: int | str | None = option(
        None,
        Option("--shard-size", "Split into files of at most this size.", (GGUF,), "size", "S", beside_passes=False),
    )
    resume: bool = option(
        False, Option("--resume", "Go on with an interrupted export of the same plan.", (GGUF, CODED, WIRE), "flag")
    )
    dry_run: bool = option(
        False, Option("--dry-run", "Print the plan, exact to the byte; write nothing.", value="flag")
    )
    threads: int | None = option(None, Option("--threads", "Default: all processors.", value="count", metavar="N"))
    cluster: str | None = option(None, Option(
        "--cluster", "Let the nodes of a Ray cluster do the work, for the same bytes: auto, or HOST:PORT of its head.",
        value="text", metavar="ADDRESS",
    ))  # fmt: skip


def declared_options() -> dict[str, Option]:
    """Name of a field of `ExportOptions` → its option, in the order in which help shows them."""
    return {each.name: each.metadata["option"] for each in fields(ExportOptions) if "option" in each.metadata}


def given_options(request: ExportOptions) -> dict[str, Option]:
    """The options that are not at their defaults."""
    known = declared_options()
    return {name: known[name] for name in known if getattr(request, name) != default_of(name)}


def default_of(name: str) -> object:
    """What a field of `ExportOptions` holds when the option is not given."""
    return next(each.default for each in fields(ExportOptions) if each.name == name)
