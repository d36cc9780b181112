"""Makes a certificate and puts it where it belongs; finds it again on the device and replays it.

What a certificate holds is `edge.fidelity.certificate`'s, how an archive holds members `packaging`'s.
"""

from __future__ import annotations

import platform
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepack.edge.fidelity.certificate import DEFAULT_TOKENS, MEMBER, small_form, store
from edgepack.edge.fidelity.certificate_file import deliver, wire_facts, with_metadata
from edgepack.edge.fidelity.outcome import figures, finite
from edgepack.edge.fidelity.scoring import choose_chunking, measure_floor, open_candidate, sample_text, text_to_score
from edgepack.edge.fidelity.stored_reference import encode
from edgepack.edge.fidelity.validate import validate
from edgepack.files.folders import scratch_beside
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header
from edgepack.pipeline.fidelity import open_original
from edgepack.progress import silent
from edgepack.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgepack.edge.fidelity.scoring import ScoringOptions
    from edgepack.pipeline.located import LocatedModel
    from edgepack.progress import Progress


@dataclass(frozen=True)
class Certified:
    """What certifying gave.

    Attributes:
        output: the archive or GGUF that holds the proof.
        bytes: its length.
        certificate_bytes: of the stored reference.
        tokens: scored positions that can be replayed.
        base_logits_bytes: what llama.cpp's tool would store for the same positions.
        figures: of the whole text.
    """

    output: Path
    bytes: int
    certificate_bytes: int
    tokens: int
    base_logits_bytes: int
    figures: Mapping[str, Any]


def certify(
    candidate_path: Path,
    reference_path: Path,
    text_path: Path | None,
    output: Path,
    options: ScoringOptions,
    stored_tokens: int = DEFAULT_TOKENS,
    progress: Progress = silent,
    located: LocatedModel | None = None,
) -> Certified:
    """Measure a file and pack it with the proof: figures in the GGUF's metadata, replayable answers beside it.

    Signatures of an archive do not carry over to the new one: sign after certifying.

    Args:
        candidate_path: a GGUF or an `.edgepack`.
        reference_path: the original, of one at a URL the folder of its small files.
        text_path: what is scored; None is the reference's own samples.
        output: `.edgepack` for an archive; any other name gets the GGUF and, beside it, the certificate.
        options: how text is scored.
        stored_tokens: scored positions to store, rounded up to whole chunks.
        progress: of every stretch of work.
        located: an original at a URL.

    Raises:
        EdgepackError: whatever opening, scoring or packing finds wrong; nothing is left behind.
    """
    text = None if text_path is None else text_to_score(text_path)
    with ExitStack() as opened:
        candidate = opened.enter_context(closing(open_candidate(candidate_path, options, progress=progress)))
        reference = opened.enter_context(closing(open_original(reference_path, located, options)))
        text = text or sample_text(reference)
        chunking = choose_chunking(reference, text.text, options)
        (found,) = validate(reference, [candidate], text.text, chunking, progress)
        floor = measure_floor(reference, text.text, chunking, progress) if options.floor else ()
        measured = finite(figures(found.statistics))
        facts = {
            "figures": measured,
            "noise_floor": {same.candidate: finite(figures(same.statistics)) for same in floor},
            "reference": reference.label,
            "text": text.origin,
            "text_sha256": text.sha256,
            "versions": {"edgepack": __version__, "python": platform.python_version()},
        }
        if wire := wire_facts(read_header(candidate.path).metadata):
            facts["wire"] = wire
        short = _small_facts(measured, facts)
        each = chunking.ctx - 1 - chunking.ctx // 2
        few = replace(chunking, max_chunks=max(1, -(-stored_tokens // each)))
        with scratch_beside(output) as folder:
            model = folder / f"{candidate_path.stem}.gguf"
            facts["gguf_sha256"] = with_metadata(candidate.path, {keys.CERTIFICATE: small_form(short)}, model)
            stored = store(reference, candidate, text.text, few, facts, progress)
            certificate = folder / MEMBER
            certificate.write_bytes(encode(stored))
            size = certificate.stat().st_size
            deliver(candidate_path, model, certificate, output, options.trust, progress)
    positions = len(stored.candidate_top)
    base = positions * 2 * (2 * ((stored.reference.vocabulary + 1) // 2) + 4)
    return Certified(output, output.stat().st_size, size, positions, base, measured)


def _small_facts(measured: Mapping[str, object], facts: Mapping[str, object]) -> dict[str, object]:
    kept = ("tokens", "top1_agreement", "top1_interval", "mean_kl", "perplexity")
    return {
        "figures": {key: measured[key] for key in kept},
        **{key: facts[key] for key in ("reference", "text", "text_sha256", "versions", "wire") if key in facts},
    }
