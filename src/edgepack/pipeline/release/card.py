"""The model card: front matter, what the file is, how faithful it was measured to be, how to run it and check it.

Every number comes from the archive: its header, its derivation, its certificate. Gathering them is `facts`'.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgepack.packaging.trust.openssf import SIGNATURE
from edgepack.pipeline.release.plots import AGREEMENT, DIVERGENCE
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgepack.pipeline.release.facts import ReleaseFacts


def model_card(facts: ReleaseFacts, files: Sequence[str], *, plain: bool, key: str) -> str:
    """README.md of the release.

    Args:
        facts: of the model.
        files: names of everything beside it, in the order of the sums.
        plain: whether the GGUF itself is among them.
        key: the publisher's public key in hexadecimal; empty for an unsigned release.
    """
    licensed = "LICENSE" in files
    sections = [
        _front_matter(facts, licensed=licensed), f"# {facts.name}", _what(facts, licensed=licensed), _fidelity(facts),
        _types(facts), _usage(facts, plain), _origin(facts), _checking(facts, files, key),
    ]  # fmt: skip
    return "\n\n".join(section.strip("\n") for section in sections if section) + "\n"


def _front_matter(facts: ReleaseFacts, *, licensed: bool) -> str:
    """YAML; texts are written as JSON, which YAML reads alike, so that none of them can be anything else."""
    fields: dict[str, Any] = {"license": facts.licence or ("other" if licensed else None)}
    if licensed and not facts.licence:
        fields["license_link"] = "LICENSE"
    fields["base_model"] = facts.base or None
    if facts.base:
        fields["base_model_relation"] = "quantized"
    fields |= {
        "library_name": "gguf",
        "pipeline_tag": "feature-extraction" if facts.embeds else "text-generation",
        "language": list(facts.languages) or None,
        "tags": ["gguf", "edgepack", "quantized", facts.architecture],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value is not None]
    return "\n".join(["---", *lines, "---"])


def _what(facts: ReleaseFacts, *, licensed: bool) -> str:
    of = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base else facts.name
    target = "" if facts.derivation is None else f" as `{facts.derivation.target}`"
    kind = "an embedding model" if facts.embeds else "a language model"
    rows = [
        ("Parameters", f"{facts.parameters:,}"),
        ("Download (`.edgepack`)", format_size(facts.archive_bytes)),
        ("GGUF that runs", format_size(facts.gguf_bytes)),
        ("Context", f"{facts.context:,} tokens" if facts.context else "not stated"),
        ("Chat template", "yes" if facts.templated else "no"),
        ("Licence", facts.licence or ("see LICENSE" if licensed else "not stated in the source")),
    ]
    rows += [("Beside it", f"`{name}`") for name in facts.others]
    return f"{of}{target}: {kind} in one verified file that runs offline.\n\n{_table(('', ''), rows)}"


def _fidelity(facts: ReleaseFacts) -> str:
    """What the certificate says; without one, that nothing was measured."""
    figures = facts.figures
    if facts.certificate is None or not figures:
        return "## Fidelity\n\nNot measured: the archive holds no certificate (`edgepack certify` makes one)."
    stated = facts.certificate.facts
    quantiles = figures.get("kl_quantiles", {})
    ppl = figures.get("perplexity", {})
    rows = [
        (
            "Equal first choices",
            f"{_percent(figures.get('top1_agreement'))} ({_interval(figures.get('top1_interval'))})",
        ),
        ("Among the five likeliest", _percent(figures.get("top5_agreement"))),
        ("Mean KL divergence", f"{_number(figures.get('mean_kl'))} nats"),
        (
            "99 % and 99.9 % of tokens below",
            f"{_number(quantiles.get('0.99'))}, {_number(quantiles.get('0.999'))} nats",
        ),
        ("Perplexity, original → this file", f"{_number(ppl.get('reference'))} → {_number(ppl.get('candidate'))}"),
        ("Tokens scored", f"{figures.get('tokens', 0):,}"),
    ]
    rows += [(f"Noise floor, {name}", _percent(each.get("top1_agreement"))) for name, each in _floor(stated)]
    text = f"Measured against {stated.get('reference', 'the original')} on {stated.get('text', 'a text')}."
    replayed = f"`edgepack validate {facts.stem}.edgepack` replays {len(facts.certificate.candidate_top):,} positions"
    pictures = f"![Tokens by divergence]({DIVERGENCE})\n![Agreement along the text]({AGREEMENT})"
    return (
        f"## Fidelity\n\n{text}\n\n{_table(('', ''), rows)}\n\n{pictures}\n\n{replayed} on your machine, offline, "
        "without the original: does it compute what the publisher's did?"
    )


def _floor(stated: Any) -> list[tuple[str, Any]]:
    floor = stated.get("noise_floor", {})
    return [(name, each) for name, each in floor.items() if isinstance(each, dict)] if isinstance(floor, dict) else []


def _types(facts: ReleaseFacts) -> str:
    rows = [(share.type, f"{share.tensors}", format_size(share.bytes)) for share in facts.types]
    return f"## What is inside\n\n{_table(('type', 'tensors', 'bytes'), rows)}"


def _usage(facts: ReleaseFacts, plain: bool) -> str:
    stem, gguf = facts.stem, f"{facts.stem}.gguf"
    native = " --native" if facts.variant else ""
    first = "" if plain else f"```sh\nedgepack unpack {stem}.edgepack{native} -o {gguf}   # for all below\n```\n\n"
    lora = "".join(f" --lora {name}" for name in facts.others)
    ours = f"edgepack embed {stem}.edgepack 'a text'" if facts.embeds else f"edgepack run {stem}.edgepack"
    theirs = f"llama-embedding -m {gguf} -p 'a text'" if facts.embeds else f"llama-cli -m {gguf}{lora}"
    return (
        "## How to run it\n\n"
        "**edgepack** verifies and installs it once, adapters included:\n\n"
        f"```sh\n{ours}\nedgepack serve {stem}.edgepack\n```\n\n"
        f"{first}**llama.cpp**\n\n```sh\n{theirs}\n```\n\n"
        f"**Ollama**\n\n```sh\nollama create {stem.lower()} -f Modelfile\nollama run {stem.lower()}\n```\n\n"
        f"**LM Studio**: `lms import {gguf}`, or put it into a folder of its models."
    )


def modelfile(facts: ReleaseFacts) -> str:
    """Ollama's Modelfile; the chat template is the GGUF's own."""
    lines = [f"FROM ./{facts.stem}.gguf", *(f"ADAPTER ./{name}" for name in facts.others)]
    return "\n".join(lines) + "\n"


def _origin(facts: ReleaseFacts) -> str:
    said = facts.derivation
    if said is None:
        return "## Where it comes from\n\nThe archive holds no derivation."
    rows = [(each.role, f"`{each.name}`", f"`{each.sha256}`") for each in said.sources]
    options = ", ".join(f"{name} = {value}" for name, value in said.parameters.items())
    made = ", ".join(f"{name} {version}" for name, version in said.versions.items())
    at = f" at commit `{said.revision}`" if said.revision else ""
    inputs = "".join(f" --{name} …" for name in ("calibration", "imatrix", "adapter") if said.of_role(_ROLE[name]))
    return (
        f"## Where it comes from\n\nExported as `{said.target}`{f' with {options}' if options else ''} from "
        f"{said.repository or said.model}{at}, by {made}. The archive holds this as an in-toto statement with SLSA "
        f"provenance; to make the same bytes again and compare:\n\n"
        f"```sh\nedgepack provenance {facts.stem}.edgepack --check MODEL{inputs}\n```\n\n"
        f"{_table(('', 'file', 'SHA-256'), rows)}"
    )


_ROLE = {"calibration": "calibration", "imatrix": "importance", "adapter": "adapter"}


def _checking(facts: ReleaseFacts, files: Sequence[str], key: str) -> str:
    trusted = " --trusted publisher.pub" if key else ""
    commands = ["sha256sum -c SHA256SUMS", f"edgepack verify {facts.stem}.edgepack{trusted}"]
    if key:
        commands.insert(
            0, "openssl pkeyutl -verify -pubin -inkey publisher.pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig"
        )
    told = (
        f"Signed by ed25519 `{key}`; get the key from the publisher by another way than this page."
        if key
        else ("This release is not signed.")
    )
    if SIGNATURE in files:
        commands.append("edgepack verify . --openssf-key PUBLISHER.pub   # or: model_signing verify key .")
    listed = "\n".join(f"- `{name}`" for name in files)
    return f"## How to check it\n\n```sh\n{chr(10).join(commands)}\n```\n\n{told}\n\n{listed}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def _percent(value: object) -> str:
    from edgepack.edge.fidelity.outcome import percent

    return percent(value) if isinstance(value, float) else "not stated"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else "not stated"


def _interval(value: object) -> str:
    if not isinstance(value, list) or len(value) != 2:
        return "no interval"
    return f"{_percent(value[0])} to {_percent(value[1])}"
